#!/usr/bin/env bash
# Finding: one pair more in the meta of a node takes an SRV record out of Consul's answers over UDP, and the next one brings it back.
#
# Version: Consul 1.22.7, PUT /v1/catalog/register, DNS over UDP without EDNS, default settings.
#
# A good guess: Consul answers three SRV records over UDP (`dns_config.udp_answer_limit`), each with the address of its target, and the
# meta of nodes is for TXT questions (`NODE.node.consul`) alone. What happens: every SRV answer carries the meta of the instances'
# nodes, as TXT records, although nobody asked for them. They count for the 512 bytes: with three pairs of meta, two records of three
# come, and nothing says that there are more. With four pairs all three come again: what is over by more than a hundred bytes is cut in
# another way, which drops the TXT records first. `enable_additional_node_meta_txt = false` leaves the meta out.
#
# Seen, of three instances on one node:
#   SRV records, the node without meta                             3
#   SRV records, the node with two pairs                           3
#   TXT records beside them, each pair once for each instance      6
#   SRV records, the node with three pairs                         2
#   the answer says that it is cut                                 false
#   SRV records, the node with four pairs                          3
#   TXT records beside them                                        0
#   addresses by A, the node with three pairs                      3
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

// Asks for a service. Prints how many records answer, how many TXT records come along, and whether the answer says that it is cut.
func main() {
	kind := map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "SRV": dnsmessage.TypeSRV}[os.Args[1]]
	name := dnsmessage.MustNewName(os.Args[2] + ".service.consul.")
	question := dnsmessage.Question{Name: name, Type: kind, Class: dnsmessage.ClassINET}
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
	texts := 0
	for _, record := range answer.Additionals {
		if record.Header.Type == dnsmessage.TypeTXT {
			texts++
		}
	}
	fmt.Println(len(answer.Answers), texts, answer.Truncated)
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

# Registers three instances on a node with so many pairs of meta.
register() {
    local meta='' number
    for number in $(seq "$2"); do meta="$meta,\"team-$number\":\"a-team-of-the-shop\""; done
    for number in 1 2 3; do
        curl -sf -X PUT "$at/catalog/register" -d '{"Node":"'"$1"'","Address":"192.0.2.1","NodeMeta":{'"${meta#,}"'},
            "Service":{"ID":"'"$1-$number"'","Service":"'"$1"'","Address":"192.0.2.'"$number"'","Port":80}}' > /dev/null
    done
}
register m0 0
register m2 2
register m3 3
register m4 4

expect 'SRV records, the node without meta' 3 "$(./ask SRV m0 | cut -d ' ' -f 1)"
expect 'SRV records, the node with two pairs' 3 "$(./ask SRV m2 | cut -d ' ' -f 1)"
expect 'TXT records beside them, each pair once for each instance' 6 "$(./ask SRV m2 | cut -d ' ' -f 2)"
expect 'SRV records, the node with three pairs' 2 "$(./ask SRV m3 | cut -d ' ' -f 1)"
expect 'the answer says that it is cut' false "$(./ask SRV m3 | cut -d ' ' -f 3)"
expect 'SRV records, the node with four pairs' 3 "$(./ask SRV m4 | cut -d ' ' -f 1)"
expect 'TXT records beside them' 0 "$(./ask SRV m4 | cut -d ' ' -f 2)"
expect 'addresses by A, the node with three pairs' 3 "$(./ask A m3 | cut -d ' ' -f 1)"
