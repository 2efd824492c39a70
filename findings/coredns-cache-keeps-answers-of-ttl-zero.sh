#!/usr/bin/env bash
# Finding: CoreDNS' plugin `cache` keeps an answer of TTL 0 for five seconds, and passes it on with a TTL of five.
#
# Version: CoreDNS 1.15.0 with `cache` as it comes, in front of Consul 1.22.7, whose answers have a TTL of 0.
#
# A good guess: a TTL of 0 means that nobody keeps the answer (RFC 1035, 3.2.1), so a cache between changes nothing, and clients of a
# service see at once that an instance is gone. What happens: the least TTL of `cache` is five seconds, and what is below is raised.
# Clients that keep answers keep it for five seconds more. The same goes for the answer that a name does not exist: who asks a moment
# before the first instance is registered waits for five seconds too, though Consul says 0 in its SOA.
#
# Seen, of a service with one instance:
#   TTL of Consul's answer                                         0
#   TTL of CoreDNS' answer without cache                           0
#   TTL of CoreDNS' answer with cache                              5
#   addresses after the instance is gone, by Consul                none
#   addresses after the instance is gone, without cache            none
#   addresses after the instance is gone, with cache               10.0.0.1
#   and after six seconds                                          none
#   addresses of one that comes after a question, without cache    10.0.0.2
#   addresses of one that comes after a question, with cache       none
#
# Needs: Go 1.26 or later, curl, ports 28800 to 28803 free. Exit code 0 while this is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
consul=
coredns=
trap 'for one in $coredns $consul; do kill "$one" 2> /dev/null || true; done; wait; chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"

mkdir server proxy client
for name in server proxy client; do printf 'module finding/%s\n\ngo 1.26.0\n' "$name" > "$name/go.mod"; done
cat > client/main.go <<'GO'
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Asks at a port for the addresses of a service. Prints the first one, or its TTL.
func main() {
	name := dnsmessage.MustNewName(os.Args[2] + ".service.consul.")
	question := dnsmessage.Question{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	message := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 1, RecursionDesired: true},
		Questions: []dnsmessage.Question{question},
	}
	packet, err := message.Pack()
	if err != nil {
		panic(err)
	}
	connection, err := net.Dial("udp", "127.0.0.1:"+os.Args[1])
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
	if len(answer.Answers) == 0 {
		fmt.Println("none")
		return
	}
	first := answer.Answers[0]
	if os.Args[3] == "ttl" {
		fmt.Println(first.Header.TTL)
		return
	}
	address := first.Body.(*dnsmessage.AResource).A
	fmt.Println(net.IP(address[:]))
}
GO
# Consul's own go.mod takes its api module from a folder of its repository: it is named here, at its version.
{ (cd server && go get -tool github.com/hashicorp/consul@v1.22.7 github.com/hashicorp/consul/api@v1.34.1 &&
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../consul github.com/hashicorp/consul) &&
    (cd proxy && go get -tool github.com/coredns/coredns@v1.15.0 &&
        CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../coredns github.com/coredns/coredns) &&
    (cd client && go get golang.org/x/net/dns/dnsmessage && go build -trimpath -o ../ask .); } > build.log 2>&1 ||
    { cat build.log >&2; exit 1; }

cat > consul.hcl <<'HCL'
server = true
bootstrap_expect = 1
node_name = "server"
ports { http = 28800, dns = 28801, grpc = -1, grpc_tls = -1, server = 28810, serf_lan = 28811, serf_wan = -1 }
HCL
./consul agent -data-dir data -bind 127.0.0.1 -config-file consul.hcl > consul.log 2>&1 &
consul=$!
cat > Corefile <<'BLOCKS'
consul:28802 {
  bind 127.0.0.1
  forward . 127.0.0.1:28801
}
consul:28803 {
  bind 127.0.0.1
  forward . 127.0.0.1:28801
  cache
}
BLOCKS
./coredns -conf Corefile > coredns.log 2>&1 &
coredns=$!
at=http://127.0.0.1:28800/v1
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
register web 10.0.0.1

expect "TTL of Consul's answer" 0 "$(./ask 28801 web ttl)"
expect "TTL of CoreDNS' answer without cache" 0 "$(./ask 28802 web ttl)"
expect "TTL of CoreDNS' answer with cache" 5 "$(./ask 28803 web ttl)"
curl -sf -X PUT "$at/catalog/deregister" -d '{"Node":"machines","ServiceID":"web"}' > /dev/null
expect 'addresses after the instance is gone, by Consul' none "$(./ask 28801 web address)"
expect 'addresses after the instance is gone, without cache' none "$(./ask 28802 web address)"
expect 'addresses after the instance is gone, with cache' 10.0.0.1 "$(./ask 28803 web address)"
sleep 6
expect 'and after six seconds' none "$(./ask 28803 web address)"
for port in 28802 28803; do [ "$(./ask $port late address)" = none ]; done
register late 10.0.0.2
expect 'addresses of one that comes after a question, without cache' 10.0.0.2 "$(./ask 28802 late address)"
expect 'addresses of one that comes after a question, with cache' none "$(./ask 28803 late address)"
