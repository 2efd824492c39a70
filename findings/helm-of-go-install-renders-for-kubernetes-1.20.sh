#!/usr/bin/env bash
# Finding: a Helm 3 that `go install` or a plain `go build` made renders charts offline for Kubernetes 1.20.
#
# Version: Helm 3.14.4, built without linker flags; `helm template` without a cluster.
#
# A good guess: the version of Kubernetes that a Helm takes for given offline is in its code, next to the client library that it
# is built with (client-go 0.29 here), so every build of one version renders the same. What happens: two linker flags set it.
# Without them it is v1.20.0, so a chart that asks for a newer Kubernetes is refused, and every condition on the version of
# Kubernetes takes the branch of 2020, while another build of the very same source goes the other way.
#
# Seen:
#   without --kube-version: the version that a chart sees          v1.20.0
#   without --kube-version: a chart for 1.25 or later              refused
#   with --kube-version 1.29.0: the same chart                     rendered
#   built with the two flags: the version that a chart sees        v1.29.0
#
# Needs: Go 1.26 or later. Exit code 0 while this is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"

cat > go.mod <<'GO'
module finding

go 1.26.0
GO
{ go get -tool helm.sh/helm/v3/cmd/helm@v3.14.4 &&
    CGO_ENABLED=0 go build -trimpath -o helm helm.sh/helm/v3/cmd/helm; } > build.log 2>&1 ||
    { cat build.log >&2; exit 1; }

expect() {
    printf '%-62s %s\n' "$1" "$3"
    if [ "$2" != "$3" ]; then
        echo "changed: expected $2" >&2
        exit 1
    fi
}

# A chart with one ConfigMap, which holds the version that the chart sees.
chart() {
    mkdir -p "$1/templates"
    printf 'apiVersion: v2\nname: %s\nversion: 0.1.0\n%s\n' "$1" "$2" > "$1/Chart.yaml"
    cat > "$1/templates/map.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: map}
data: {version: "{{ .Capabilities.KubeVersion.Version }}"}
YAML
}
render() { if ./helm template "$@" > out.yaml 2> err.txt; then echo rendered; else echo refused; fi; }

chart any ""
chart new 'kubeVersion: ">=1.25.0-0"'
render any > /dev/null
expect 'without --kube-version: the version that a chart sees' v1.20.0 "$(grep -oE 'v1\.[0-9]+\.[0-9]+' out.yaml)"
expect 'without --kube-version: a chart for 1.25 or later' refused "$(render new)"
grep -q 'incompatible with Kubernetes v1.20.0' err.txt
expect 'with --kube-version 1.29.0: the same chart' rendered "$(render new --kube-version 1.29.0)"

variable=helm.sh/helm/v3/pkg/chartutil.k8sVersion
CGO_ENABLED=0 go build -trimpath -ldflags "-X ${variable}Major=1 -X ${variable}Minor=29" -o helm helm.sh/helm/v3/cmd/helm
render any > /dev/null
expect 'built with the two flags: the version that a chart sees' v1.29.0 "$(grep -oE 'v1\.[0-9]+\.[0-9]+' out.yaml)"
