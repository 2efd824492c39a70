#!/usr/bin/env bash
# Finding: in one transaction of Consul, delete-cas of what is not there succeeds for a key and fails for a service, a check or a node.
#
# Version: Consul 1.22.7, one server.
#
# A good guess: the verb delete-cas ("delete it if its index is still this one") means the same for all kinds of a transaction. It does
# not. For a key that does not exist it succeeds, whatever the index. For a service, a check or a node that does not exist the whole
# transaction is rolled back with "index is stale", the words for what somebody else has changed. So whoever deletes by index and does
# not hear the answer may send it again for keys. For services, the second try says that somebody else was faster.
#
# Seen:
#   delete-cas of a key that is not there                 200
#   delete-cas of a service that is not there             409 index is stale
#   delete-cas of a check that is not there               409 index is stale
#   delete-cas of a node that is not there                409 index is stale
#   delete of the same service, without an index          200
#   delete-cas of a service that is there                 200
#   the same once more                                    409 index is stale
#
# Needs: Go 1.26 or later, curl, port 28570 free. Exit code 0 while this is so, 1 when it has changed.
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
ports { http = 28570, dns = -1, grpc = -1, grpc_tls = -1, server = 28370, serf_lan = 28371, serf_wan = -1 }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
at=http://127.0.0.1:28570/v1
for _ in $(seq 150); do
    ! curl -s "$at/catalog/node/server" | grep -q '"server"' || break
    sleep 0.2
done

expect() {
    printf '%-53s %s\n' "$1" "$3"
    if [ "$2" != "$3" ]; then
        echo "changed: expected $2" >&2
        exit 1
    fi
}

# The status of a transaction, and the words where they are those of an index.
transaction() {
    local status words
    status=$(curl -s -o answer -w '%{http_code}' -X PUT "$at/txn" -d "$1")
    words=$(grep -o 'index is stale' answer || true)
    echo "$status${words:+ $words}"
}

service() {
    echo "{\"Service\":{\"Verb\":\"$1\",\"Node\":\"$2\",\"Service\":{\"ID\":\"a\",\"Service\":\"web\",\"ModifyIndex\":$3}}}"
}

expect 'delete-cas of a key that is not there' 200 \
    "$(transaction '[{"KV":{"Verb":"delete-cas","Key":"nowhere","Index":5}}]')"
expect 'delete-cas of a service that is not there' '409 index is stale' "$(transaction "[$(service delete-cas nowhere 5)]")"
expect 'delete-cas of a check that is not there' '409 index is stale' \
    "$(transaction '[{"Check":{"Verb":"delete-cas","Check":{"Node":"nowhere","CheckID":"a","ModifyIndex":5}}}]')"
expect 'delete-cas of a node that is not there' '409 index is stale' \
    "$(transaction '[{"Node":{"Verb":"delete-cas","Node":{"Node":"nowhere","ModifyIndex":5}}}]')"
expect 'delete of the same service, without an index' 200 "$(transaction "[$(service delete nowhere 0)]")"

transaction "[{\"Node\":{\"Verb\":\"set\",\"Node\":{\"Node\":\"n\",\"Address\":\"192.0.2.1\"}}},$(service set n 0)]" > /dev/null
index=$(curl -s "$at/catalog/service/web" | grep -o '"ModifyIndex":[0-9]*' | head -n 1 | tr -dc 0-9)
expect 'delete-cas of a service that is there' 200 "$(transaction "[$(service delete-cas n "$index")]")"
expect 'the same once more' '409 index is stale' "$(transaction "[$(service delete-cas n "$index")]")"
