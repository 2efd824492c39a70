#!/usr/bin/env bash
# Finding: a community Consul refuses a namespace everywhere, and carries out a transaction for one in the only namespace it has.
#
# Version: Consul 1.22.7, community edition, one server.
#
# A good guess: a request for a namespace or a partition, which only Consul Enterprise has, is answered with 400. So it is for a
# registration in the catalog or with an agent, and for each read. What happens: a transaction with the same fields, or with the namespace
# in its query, is answered with 200, and what it writes is in the catalog that everybody reads. Whoever writes by transactions alone
# never learns that his namespace is not one.
#
# Seen:
#   PUT /v1/catalog/register, Namespace in the body             400
#   PUT /v1/agent/service/register, Namespace in the body       400
#   GET /v1/catalog/service/web?ns=shop                         400
#   PUT /v1/txn, Namespace and Partition in the operations      200
#   PUT /v1/txn?ns=shop                                         200
#   instances of web in the catalog                             by-field by-query
#
# Needs: Go 1.26 or later, curl, port 28560 free. Exit code 0 while this is so, 1 when it has changed.
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

cat > consul.hcl <<'HCL'
server = true
bootstrap_expect = 1
node_name = "server"
ports { http = 28560, dns = -1, grpc = -1, grpc_tls = -1, server = 28360, serf_lan = 28361, serf_wan = -1 }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
at=http://127.0.0.1:28560/v1
for _ in $(seq 150); do
    ! curl -s "$at/catalog/node/server" | grep -q '"server"' || break
    sleep 0.2
done

expect() {
    printf '%-60s %s\n' "$1" "$3"
    if [ "$2" != "$3" ]; then
        echo "changed: expected $2" >&2
        exit 1
    fi
}

status() {
    curl -s -o answer -w '%{http_code}' "$@"
}

node='{"Node":{"Verb":"set","Node":{"Node":"n","Address":"192.0.2.1"}}}'
expect 'PUT /v1/catalog/register, Namespace in the body' 400 "$(status -X PUT "$at/catalog/register" -d \
    '{"Node":"m","Address":"192.0.2.2","Service":{"ID":"a","Service":"web","Namespace":"shop"}}')"
expect 'PUT /v1/agent/service/register, Namespace in the body' 400 "$(status -X PUT "$at/agent/service/register" -d \
    '{"ID":"b","Name":"web","Namespace":"shop"}')"
expect 'GET /v1/catalog/service/web?ns=shop' 400 "$(status "$at/catalog/service/web?ns=shop")"
expect 'PUT /v1/txn, Namespace and Partition in the operations' 200 "$(status -X PUT "$at/txn" -d \
    "[$node,{\"Service\":{\"Verb\":\"set\",\"Node\":\"n\",\"Service\":{\"ID\":\"by-field\",\"Service\":\"web\",\"Namespace\":\"shop\",\"Partition\":\"eu\"}}}]")"
expect 'PUT /v1/txn?ns=shop' 200 "$(status -X PUT "$at/txn?ns=shop" -d \
    "[$node,{\"Service\":{\"Verb\":\"set\",\"Node\":\"n\",\"Service\":{\"ID\":\"by-query\",\"Service\":\"web\"}}}]")"
there=$(curl -s "$at/catalog/service/web" | grep -o '"ServiceID":"[^"]*"' | cut -d '"' -f 4 | sort | xargs)
expect 'instances of web in the catalog' 'by-field by-query' "$there"
