#!/usr/bin/env bash
# Finding: a transaction that the token may not make is answered with 409, like one that lost a race.
#
# Version: Consul 1.22.7, PUT /v1/txn.
#
# A good guess: a missing permission is 403, as it is for the same write through /v1/catalog/register, and 409 means that a
# compare-and-set came too late, so that reading and trying again helps. What happens: 409 for both. Whoever tries again on 409 never
# ends where a permission is missing. Only the text of the error tells them apart, and it holds the name of the service.
#
# Seen:
#   /v1/catalog/register, not permitted                            403
#   /v1/txn, not permitted                                         409
#   /v1/txn, a stale index                                         409
#   /v1/txn, an unknown token                                      403
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

status() { ask -o /dev/null -w '%{http_code}' -X PUT "$at/$1" -d "$2"; }

ask -X PUT "$at/acl/policy" -d '{"Name":"a","Rules":"node_prefix \"\" { policy = \"write\" } service \"a\" { policy = \"write\" }"}' > /dev/null
limited=$(ask -X PUT "$at/acl/token" -d '{"Policies":[{"Name":"a"}]}' | grep -oE '"SecretID": ?"[^"]*"' | cut -d'"' -f4)
status catalog/register '{"Node":"n","Address":"192.0.2.1","Service":{"ID":"a","Service":"a"}}' > /dev/null
token=$limited
expect '/v1/catalog/register, not permitted' 403 \
    "$(status catalog/register '{"Node":"n","Address":"192.0.2.1","SkipNodeUpdate":true,"Service":{"ID":"b","Service":"b"}}')"
expect '/v1/txn, not permitted' 409 \
    "$(status txn '[{"Service":{"Verb":"set","Node":"n","Service":{"ID":"b","Service":"b"}}}]')"
expect '/v1/txn, a stale index' 409 \
    "$(status txn '[{"Service":{"Verb":"cas","Node":"n","Service":{"ID":"a","Service":"a","ModifyIndex":1}}}]')"
token=00000000-0000-0000-0000-000000000000
expect '/v1/txn, an unknown token' 403 \
    "$(status txn '[{"Service":{"Verb":"set","Node":"n","Service":{"ID":"a","Service":"a"}}}]')"
