#!/usr/bin/env bash
# Finding: an agent that joins under the name of a node of the catalog takes the node and deregisters all that was there.
#
# Version: Consul 1.22.7, an agent and PUT /v1/catalog/register.
#
# A good guess: the name is taken, so the agent is refused, as where two agents have one name; or both share the node. What happens:
# the node gets the agent's ID and address, and since the agent does not know the services that others have registered there, its
# first synchronization deletes them. Case does not count: the agent `DB` takes the node `db`. Whoever registers external services
# has to choose names that no machine will ever have.
#
# Seen:
#   the address of db, as registered                               192.0.2.1
#   services of db                                                 sql
#   the address of db, once the agent has joined                   127.0.0.2
#   services of db, once the agent has joined                      none
#
# Needs: Go 1.26 or later, curl, Linux (for 127.0.0.2), port 28500 free. Exit code 0 while this is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
started=()
trap '[ -z "${started[*]}" ] || kill "${started[@]}" 2> /dev/null || true; wait; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
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
started+=($!)
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

address() { ask "$at/catalog/node/db" | grep -oE '"Address": ?"[^"]*"' | head -1 | cut -d'"' -f4; }
services() {
    local found
    found=$(ask "$at/catalog/node/db" | grep -oE '"Service": ?"[^"]*"' | cut -d'"' -f4 | tr '\n' ' ')
    found=${found% }
    echo "${found:-none}"
}

ask -X PUT "$at/catalog/register" -d '{"Node":"db","Address":"192.0.2.1","Service":{"ID":"sql","Service":"sql"}}' > /dev/null
expect 'the address of db, as registered' 192.0.2.1 "$(address)"
expect 'services of db' sql "$(services)"
cat > agent.hcl <<HCL
node_name = "DB"
ports { http = -1, dns = -1, grpc = -1, grpc_tls = -1, serf_lan = 28302 }
HCL
./consul agent -data-dir agent -bind 127.0.0.2 -config-file agent.hcl -retry-join 127.0.0.1:28301 > agent.log 2>&1 &
started+=($!)
for _ in $(seq 150); do
    [ "$(address)" = 192.0.2.1 ] || [ "$(services)" = sql ] || break
    sleep 0.2
done
expect 'the address of db, once the agent has joined' 127.0.0.2 "$(address)"
expect 'services of db, once the agent has joined' none "$(services)"
