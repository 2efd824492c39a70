#!/usr/bin/env bash
# Finding: go-kit's discovery by Consul joins an IPv6 address and its port by a colon alone, so nobody can connect to it.
#
# Version: go-kit 0.13.0 (`sd/consul`), Consul 1.22.7.
#
# A good guess: an instance that the instancer tells of is an address as `net.Dial` takes it, since the endpointer hands it to a factory
# that dials. What happens: it is `fmt.Sprintf`ed of the address and the port. For an IPv6 address there are no brackets, `net` counts
# too many colons, and nothing says so before the first call. An endpointer takes whatever its factory does not refuse.
#
# Seen:
#   an IPv4 address                                                10.0.0.1:80
#   what net.SplitHostPort says of it                              10.0.0.1 80
#   an IPv6 address                                                fd00::1:80
#   what net.SplitHostPort says of it                              address fd00::1:80: too many colons in address
#
# Needs: Go 1.26 or later, curl, port 28700 free. Exit code 0 while this is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
consul=
trap '[ -z "$consul" ] || kill "$consul" 2> /dev/null || true; wait; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"

mkdir server client
cat > server/go.mod <<'GO'
module finding/server

go 1.26.0
GO
cat > client/go.mod <<'GO'
module finding/client

go 1.26.0
GO
cat > client/main.go <<'GO'
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/go-kit/kit/sd"
	kit "github.com/go-kit/kit/sd/consul"
	"github.com/go-kit/log"
	"github.com/hashicorp/consul/api"
)

// Prints the one instance of a service as go-kit tells of it, or what net makes of that.
func main() {
	client, err := api.NewClient(&api.Config{Address: "127.0.0.1:28700"})
	if err != nil {
		panic(err)
	}
	instancer := kit.NewInstancer(kit.NewClient(client), log.NewNopLogger(), os.Args[1], nil, true)
	defer instancer.Stop()
	events := make(chan sd.Event, 8)
	instancer.Register(events)
	select {
	case event := <-events:
		if event.Err != nil || len(event.Instances) != 1 {
			panic(fmt.Sprint(event))
		}
		if os.Args[2] == "instance" {
			fmt.Println(event.Instances[0])
			return
		}
		host, port, err := net.SplitHostPort(event.Instances[0])
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(host, port)
	case <-time.After(10 * time.Second):
		panic("go-kit tells of nothing")
	}
}
GO
# Consul's own go.mod takes its api module from a folder of its repository: it is named here, at its version.
{ (cd server && go get -tool github.com/hashicorp/consul@v1.22.7 github.com/hashicorp/consul/api@v1.34.1 &&
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../consul github.com/hashicorp/consul) &&
    (cd client && go get github.com/go-kit/kit/sd/consul@v0.13.0 github.com/hashicorp/consul/api@v1.34.1 github.com/go-kit/log &&
        go build -trimpath -o ../ask .); } > build.log 2>&1 || { cat build.log >&2; exit 1; }

cat > consul.hcl <<'HCL'
server = true
bootstrap_expect = 1
node_name = "server"
ports { http = 28700, dns = -1, grpc = -1, grpc_tls = -1, server = 28710, serf_lan = 28711, serf_wan = -1 }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
at=http://127.0.0.1:28700/v1
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

register() {
    curl -sf -X PUT "$at/catalog/register" -d '{"Node":"machines","Address":"192.0.2.1",
        "Service":{"ID":"'"$1"'","Service":"'"$1"'","Address":"'"$2"'","Port":80}}' > /dev/null
}
register four 10.0.0.1
register six fd00::1

expect 'an IPv4 address' 10.0.0.1:80 "$(./ask four instance)"
expect 'what net.SplitHostPort says of it' '10.0.0.1 80' "$(./ask four parts)"
expect 'an IPv6 address' fd00::1:80 "$(./ask six instance)"
expect 'what net.SplitHostPort says of it' 'address fd00::1:80: too many colons in address' "$(./ask six parts)"
