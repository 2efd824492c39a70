#!/usr/bin/env bash
# Finding: registering a service with a Consul agent once more keeps the status that its check had, whatever the
# registration says, also when the address is another.
#
# Version: Consul 1.22.7.
#
# A good guess: `Status` in a registration is the status that the check starts with, here as in the first registration. What
# happens: an agent that knows the check's ID keeps the old status. A new instance under an old ID inherits the health of
# the one before it: here a dead address is passing.
#
# Seen:
#   registered with Status passing                                  passing
#   registered again at another address with Status critical        passing
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

root=11111111-1111-1111-1111-111111111111
cat > consul.hcl <<HCL
server = true
bootstrap_expect = 1
node_name = "server"
ports { http = 28500, dns = -1, grpc = -1, grpc_tls = -1, server = 28300, serf_lan = 28301, serf_wan = -1 }
acl { enabled = true, default_policy = "deny", tokens { initial_management = "$root" } }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
ask() { curl -s -H "X-Consul-Token: ${token:-$root}" "$@"; }
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

status() { ask "$at/agent/checks" | grep -o '"Status":"[a-z]*"' | cut -d'"' -f4; }
register() {
    ask -X PUT "$at/agent/service/register" \
        -d "{\"Name\":\"web\",\"Address\":\"$1\",\"Port\":80,\"Check\":{\"CheckID\":\"ready\",\"TTL\":\"24h\",\"Status\":\"$2\"}}"
}

register 192.0.2.1 passing
expect 'registered with Status passing' passing "$(status)"
register 192.0.2.2 critical
expect 'registered again at another address with Status critical' passing "$(status)"
