#!/usr/bin/env bash
# Finding: a Consul agent answers 200 to an update of a check that the catalog never shows.
#
# Version: Consul 1.22.7, an agent with ACLs.
#
# A good guess: the agent answers 200 when the update counts. What happens: the agent keeps the update for itself and syncs the
# check with the token of its registration. That token was deleted, so the servers refuse the sync. Whoever asks the
# agent sees the new status, whoever asks the catalog sees the old one, and the writer was told 200.
#
# Seen:
#   PUT /v1/agent/check/update, by a token that is well             200
#   the agent says                                                  critical
#   the catalog says, 10 s later                                    passing
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

field() { grep -o "\"$1\":\"[^\"]*\"" | head -1 | cut -d'"' -f4; }
status() { grep -o '"Status":"[a-z]*"' | cut -d'"' -f4; }

ask -X PUT "$at/acl/policy" -d '{"Name":"web","Rules":"service \"web\" { policy = \"write\" }"}' > /dev/null
made=$(ask -X PUT "$at/acl/token" -d '{"Policies":[{"Name":"web"}]}')
accessor=$(field AccessorID <<< "$made")
token=$(field SecretID <<< "$made") ask -X PUT "$at/agent/service/register" \
    -d '{"Name":"web","Port":80,"Check":{"CheckID":"ready","TTL":"24h","Status":"passing"}}'
for _ in $(seq 50); do
    [ "$(ask "$at/health/checks/web" | status)" != passing ] || break
    sleep 0.2
done
expect 'the catalog says, before' passing "$(ask "$at/health/checks/web" | status)"
ask -X DELETE "$at/acl/token/$accessor" > /dev/null

answer=$(ask -o /dev/null -w '%{http_code}' -X PUT "$at/agent/check/update/ready" -d '{"Status":"critical"}')
expect 'PUT /v1/agent/check/update, by a token that is well' 200 "$answer"
sleep 10
expect 'the agent says' critical "$(ask "$at/agent/checks" | status)"
expect 'the catalog says, 10 s later' passing "$(ask "$at/health/checks/web" | status)"
