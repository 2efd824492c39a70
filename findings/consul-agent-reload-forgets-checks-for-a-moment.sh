#!/usr/bin/env bash
# Finding: while a Consul agent reloads its configuration, it answers 404 to updates of checks that it has.
#
# Version: Consul 1.22.7, one agent with 300 services, each with a TTL check.
#
# A good guess: a reload is there so that nothing is disturbed; what was registered over HTTP has nothing to do with the
# configuration. What happens: for a moment the agent does not know checks that it knew before and knows afterwards. Whoever takes
# "Unknown check ID" for "somebody has deregistered it" registers it again, or gives it up.
#
# Seen, in ten reloads under updates one after the other:
#   PUT /v1/agent/check/update, without reloads                     all 200
#   PUT /v1/agent/check/update, during reloads                      some 404
#   the answer                                                      Unknown check ID
#   checks that the agent has afterwards                            300
#
# Needs: Go 1.26 or later, curl, port 28550 free. Exit code 0 while this is so, 1 when it has changed.
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
ports { http = 28550, dns = -1, grpc = -1, grpc_tls = -1, server = 28350, serf_lan = 28351, serf_wan = -1 }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
at=http://127.0.0.1:28550/v1
for _ in $(seq 150); do
    ! curl -s "$at/catalog/node/server" | grep -q '"server"' || break
    sleep 0.2
done

expect() {
    printf '%-62s %s\n' "$1" "$3"
    if [ "$2" != "$3" ]; then
        echo "changed: expected $2" >&2
        exit 1
    fi
}

for i in $(seq 300); do
    curl -s -X PUT "$at/agent/service/register" -d "{\"Name\":\"web\",\"ID\":\"web-$i\",\"Check\":{\"CheckID\":\"check-$i\",\"TTL\":\"24h\"}}"
done

# Updates every check twice over one connection, and prints the status of each answer; refusals with their text.
for _ in 1 2; do
    for i in $(seq 300); do
        printf 'next\nurl = "%s/agent/check/update/check-%s"\nrequest = "PUT"\ndata = "{\\"Status\\":\\"passing\\"}"\nwrite-out = " %%{http_code}\\n"\n' "$at" "$i"
    done
done | sed 1d > updates
update() { curl -s -K updates; }

expect 'PUT /v1/agent/check/update, without reloads' 'all 200' "$(update | grep -qv ' 200$' && echo some else || echo all 200)"
(for _ in $(seq 10); do curl -s -X PUT "$at/agent/reload"; sleep 0.1; done) &
reloads=$!
while kill -0 "$reloads" 2> /dev/null; do update; done > answers
expect 'PUT /v1/agent/check/update, during reloads' 'some 404' "$(grep -q ' 404$' answers && echo some 404 || echo no 404)"
expect 'the answer' 'Unknown check ID' "$(grep ' 404$' answers | head -1 | grep -o '^Unknown check ID')"
expect 'checks that the agent has afterwards' 300 "$(curl -s "$at/agent/checks" | grep -o '"CheckID":"check-[0-9]*"' | wc -l)"
