#!/usr/bin/env bash
# Finding: services whose names differ in case alone are one service to every question, and several in the list of services.
#
# Version: Consul 1.22.7, GET /v1/catalog/services and GET /v1/health/service/NAME.
#
# A good guess: either `web` and `Web` are two services, each with instances of its own, or they are one, and the list has one
# name. What happens: the list has each spelling, and the question for any spelling answers the instances of all of them. Whoever reads
# the list and then asks for each name, as service discovery and template programs do, gets each instance once for each spelling.
#
# Seen:
#   names in the list of services                                 Web web
#   instances of web                                               2
#   instances of Web                                               2
#   instances that a walk over the list finds                      4
#
# Needs: Go 1.26 or later, curl, port 28500 free. Exit code 0 while this is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
consul=
trap '[ -z "$consul" ] || kill "$consul" 2> /dev/null || true; wait; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"

cat > go.mod <<'GO'
module finding

go 1.26.0
GO
# Consul's own go.mod takes its api module from a folder of its repository: it is named here, at its version.
{ go get -tool github.com/hashicorp/consul@v1.22.7 github.com/hashicorp/consul/api@v1.34.1 &&
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o consul github.com/hashicorp/consul; } > build.log 2>&1 ||
    { cat build.log >&2; exit 1; }

cat > consul.hcl <<HCL
server = true
bootstrap_expect = 1
node_name = "server"
ports { http = 28500, dns = -1, grpc = -1, grpc_tls = -1, server = 28300, serf_lan = 28301, serf_wan = -1 }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
ask() { curl -s "$@"; }
at=http://127.0.0.1:28500/v1
for _ in $(seq 150); do
    ! ask "$at/catalog/node/server" | grep -q '"server"' || break
    sleep 0.2
done

expect() {
    printf '%-62s %s\n' "$1" "$3"
    if [ "$2" != "$3" ]; then
        echo "changed: expected $2" >&2
        exit 1
    fi
}

put() { ask -X PUT "$at/catalog/register" -d "$1" > /dev/null; }
count() { ask "$at/health/service/$1" | grep -oE '"Checks" ?:' | wc -l; }

put '{"Node":"a","Address":"192.0.2.1","Service":{"ID":"web-1","Service":"web"}}'
put '{"Node":"b","Address":"192.0.2.2","Service":{"ID":"web-2","Service":"Web"}}'
names=$(ask "$at/catalog/services" | grep -oiE '"web"' | tr -d '"' | LC_ALL=C sort | tr '\n' ' ')
expect 'names in the list of services' 'Web web' "${names% }"
expect 'instances of web' 2 "$(count web)"
expect 'instances of Web' 2 "$(count Web)"
found=0
for name in $names; do found=$((found + $(count "$name"))); done
expect 'instances that a walk over the list finds' 4 "$found"
