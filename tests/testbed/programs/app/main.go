// App is what runs in the testbed's pods: a server whose health a test decides, a client beside it, and
// the process that holds a pod's namespaces.
package main

import (
	"fmt"
	"os"
)

const usage = `usage:
  app pause              hold a pod's namespaces
  app serve [flags]      serve HTTP, gRPC health and TCP; see app serve -h
  app lookup [flags] NAME...  print the addresses of each name, one a line
  app get URL            print the body of an HTTP answer
  app put URL            send an empty PUT, as to a server's switches
  app load [flags]       ask a service again and again, and count; see app load -h
`

func main() {
	commands := map[string]func(args []string) error{
		"pause":  pause,
		"serve":  serve,
		"lookup": lookup,
		"get":    get,
		"put":    put,
		"load":   load,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}
