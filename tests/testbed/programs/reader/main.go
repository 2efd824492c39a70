// Asks Consul for a service as two Go programs do: with Consul's own client, and with the resolver of the standard library.
// Prints what it sees as a JSON array of "ADDRESS:PORT"; addresses alone where the way of asking knows no ports.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/hashicorp/consul/api"
)

// Arguments: the reader, Consul's HTTP address, the port of its DNS, the service.
func main() {
	found, err := ask(os.Args[1], os.Args[2], os.Args[3], os.Args[4])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(append([]string{}, found...)); err != nil {
		os.Exit(1)
	}
}

func ask(reader, http, port, service string) ([]string, error) {
	name := service + ".service.consul."
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
	}}
	var found []string
	switch reader {
	case "api":
		client, err := api.NewClient(&api.Config{Address: http})
		if err != nil {
			return nil, err
		}
		entries, _, err := client.Health().Service(service, "", true, nil)
		for _, entry := range entries {
			found = append(found, net.JoinHostPort(entry.Service.Address, strconv.Itoa(entry.Service.Port)))
		}
		return found, err
	case "host":
		found, err := resolver.LookupHost(context.Background(), name)
		return found, existing(err)
	case "srv":
		_, records, err := resolver.LookupSRV(context.Background(), "", "", name)
		for _, record := range records {
			addresses, err := resolver.LookupHost(context.Background(), record.Target)
			if err != nil {
				return nil, err
			}
			for _, address := range addresses {
				found = append(found, net.JoinHostPort(address, strconv.Itoa(int(record.Port))))
			}
		}
		return found, existing(err)
	}
	return nil, fmt.Errorf("no reader %q", reader)
}

// A name that does not exist is a service without instances.
func existing(err error) error {
	var failure *net.DNSError
	if errors.As(err, &failure) && failure.IsNotFound {
		return nil
	}
	return err
}
