#!/usr/bin/env bash
# Finding: registering a check or a service on a node that Consul knows empties the node's meta and its tagged addresses.
#
# Version: Consul 1.22.7, PUT /v1/catalog/register. A `set` of a service through PUT /v1/txn leaves the node alone.
#
# A good guess: a registration that names a node by name and address, and does not speak of its meta, leaves the meta as it is.
# What happens: the node is written anew as the request has it. Whoever marks nodes by meta loses the marks to the next
# client that registers something there without `SkipNodeUpdate`.
#
# Seen:
#   the node's meta, as registered                                  {"rack":"7"}
#   after a service through /v1/txn                                 {"rack":"7"}
#   after a check through /v1/catalog/register                      null
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

put() { ask -X PUT "$at/$1" -d "$2" > /dev/null; }
# The first Meta in the answer is the node's.
meta() { ask "$at/catalog/node/db" | grep -oE '"Meta":(null|\{[^}]*\})' | head -1 | cut -d: -f2-; }

put catalog/register '{"Node":"db","Address":"192.0.2.1","NodeMeta":{"rack":"7"}}'
expect "the node's meta, as registered" '{"rack":"7"}' "$(meta)"
put txn '[{"Service":{"Verb":"set","Node":"db","Service":{"ID":"sql","Service":"sql"}}}]'
expect 'after a service through /v1/txn' '{"rack":"7"}' "$(meta)"
put catalog/register '{"Node":"db","Address":"192.0.2.1","Check":{"CheckID":"disk","Name":"disk","Status":"passing"}}'
expect 'after a check through /v1/catalog/register' null "$(meta)"
