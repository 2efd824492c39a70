#!/usr/bin/env bash
# Finding: Consul's DNS answers names of which Consul says that it does not, and is silent about others of the same warning.
#
# Version: Consul 1.22.7, PUT /v1/agent/service/register, DNS over UDP.
#
# A good guess: the agent warns "Service name will not be discoverable via DNS due to invalid characters. Valid characters include
# all alpha-numerics and dashes.", so names with an underscore, a slash or an exclamation mark are not answered. What happens: they
# are, as they stand in the question. Names with a quote, a parenthesis, a semicolon or an at sign, which get the same warning, are
# NXDOMAIN, although they stand in the question just so. Whoever renames services because of the warning does so for nothing as a
# rule, and whoever ignores it is right for some characters alone.
#
# Seen:
#   warnings in the agent's log                                    9
#   answers for web-1                                              1
#   answers for web_1                                              1
#   answers for web/1                                              1
#   answers for web!1                                              1
#   answers for web+1                                              1
#   answers for web(1                                              0
#   answers for web;1                                              0
#   answers for web@1                                              0
#   answers for web"1                                              0
#
# Needs: Go 1.26 or later, curl, ports 28500 and 28600 free. Exit code 0 while this is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
consul=
trap '[ -z "$consul" ] || kill "$consul" 2> /dev/null || true; wait; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"

cat > go.mod <<'GO'
module finding

go 1.26.0
GO
cat > main.go <<'GO'
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Asks for the A records of a service, and prints how many there are.
func main() {
	name := dnsmessage.MustNewName(os.Args[1] + ".service.consul.")
	question := dnsmessage.Question{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	message := dnsmessage.Message{Header: dnsmessage.Header{ID: 1}, Questions: []dnsmessage.Question{question}}
	packet, err := message.Pack()
	if err != nil {
		panic(err)
	}
	connection, err := net.Dial("udp", "127.0.0.1:28600")
	if err != nil {
		panic(err)
	}
	connection.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := connection.Write(packet); err != nil {
		panic(err)
	}
	buffer := make([]byte, 4096)
	length, err := connection.Read(buffer)
	if err != nil {
		panic(err)
	}
	var answer dnsmessage.Message
	if err := answer.Unpack(buffer[:length]); err != nil {
		panic(err)
	}
	fmt.Println(len(answer.Answers))
}
GO
# Consul's own go.mod takes its api module from a folder of its repository: it is named here, at its version.
{ go get -tool github.com/hashicorp/consul@v1.22.7 github.com/hashicorp/consul/api@v1.34.1 && go get golang.org/x/net/dns/dnsmessage &&
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o consul github.com/hashicorp/consul &&
    go build -trimpath -o ask main.go; } > build.log 2>&1 || { cat build.log >&2; exit 1; }

cat > consul.hcl <<HCL
server = true
bootstrap_expect = 1
node_name = "server"
ports { http = 28500, dns = 28600, grpc = -1, grpc_tls = -1, server = 28300, serf_lan = 28301, serf_wan = -1 }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
at=http://127.0.0.1:28500/v1
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

answered=('web-1' 'web_1' 'web/1' 'web!1' 'web+1')
unanswered=('web(1' 'web;1' 'web@1' 'web"1')
number=0
for name in "${answered[@]}" "${unanswered[@]}" 'web#1'; do
    number=$((number + 1))
    printf '{"ID":"i%s","Name":"%s","Address":"192.0.2.1","Port":80}' "$number" "${name//\"/\\\"}" |
        curl -sf -X PUT "$at/agent/service/register" -d @- > /dev/null
done
# The catalog has them once it has the last one.
for _ in $(seq 150); do
    ! curl -s "$at/catalog/node/server" | grep -q '"i10"' || break
    sleep 0.2
done

expect 'warnings in the agent'"'"'s log' 9 "$(grep -c 'will not be discoverable via DNS due to invalid characters' consul.log)"
for name in "${answered[@]}"; do expect "answers for $name" 1 "$(./ask "$name")"; done
for name in "${unanswered[@]}"; do expect "answers for $name" 0 "$(./ask "$name")"; done
