package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// resolver asks this DNS server, as HOST:PORT; where it is empty, the machine's own.
func resolver(server string) *net.Resolver {
	if server == "" {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
}

func lookup(args []string) error {
	flags := flag.NewFlagSet("lookup", flag.ExitOnError)
	server := flags.String("server", "", "the DNS server to ask, HOST:PORT; by default the machine's own")
	_ = flags.Parse(args)
	if flags.NArg() == 0 {
		return errors.New("lookup: which name?")
	}
	for _, name := range flags.Args() {
		addresses, err := resolver(*server).LookupHost(context.Background(), name)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			fmt.Println(address)
		}
	}
	return nil
}

func get(args []string) error {
	if len(args) != 1 {
		return errors.New("get: just one URL")
	}
	body, err := fetch(&http.Client{Timeout: 5 * time.Second}, args[0])
	if err == nil {
		_, err = os.Stdout.Write(body)
	}
	return err
}

func put(args []string) error {
	if len(args) != 1 {
		return errors.New("put: just one URL")
	}
	request, err := http.NewRequest(http.MethodPut, args[0], nil)
	if err == nil {
		_, err = do(&http.Client{Timeout: 5 * time.Second}, request)
	}
	return err
}

func fetch(client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return do(client, request)
}

func do(client *http.Client, request *http.Request) ([]byte, error) {
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return body, err
}

// result is what load prints at its end, as one line of JSON.
type result struct {
	Requests int `json:"requests"`
	// What failed: that nobody was found, that the one who was found takes no connection, or that the answer did not come.
	NotFound   int            `json:"not_found"`
	NotReached int            `json:"not_reached"`
	NoAnswer   int            `json:"no_answer"`
	Errors     map[string]int `json:"errors,omitempty"`
	// How many answers came from each pod.
	Pods map[string]int `json:"pods"`
}

// patience is how long load waits for whom it asks: what a busy machine takes is no failure.
const patience = 10 * time.Second

type outcome struct {
	pod     string
	failure *int
	err     error
}

// load asks a service at an even rate, each time at an address that it finds anew, over a connection of its own: what
// a client sees that keeps nothing and tries nothing twice. At the control port, GET /pods tells who has answered so far, one
// pod a line, and PUT /end ends it before its time.
func load(args []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	dns := flags.String("dns", "", "find the service by this name in DNS")
	server := flags.String("server", "", "the DNS server to ask, HOST:PORT; by default the machine's own")
	port := flags.Int("port", 8080, "its port, with -dns")
	consul := flags.String("consul", "", "find the service at this Consul, http://HOST:PORT")
	service := flags.String("service", "", "its name, with -consul")
	path := flags.String("path", "/", "what to ask for")
	rate := flags.Int("rate", 50, "requests a second")
	duration := flags.Duration("duration", 10*time.Second, "for how long at the most")
	control := flags.String("control", "", "where to be asked and to be told to end, ADDRESS:PORT")
	_ = flags.Parse(args)

	finder := &http.Client{Timeout: patience}
	find := func() (string, error) { return findByDNS(resolver(*server), *dns, *port) }
	if *consul != "" {
		find = func() (string, error) { return findByConsul(finder, *consul, *service) }
	}
	end, cancel := context.WithTimeout(context.Background(), *duration)
	defer cancel()
	total := result{Errors: map[string]int{}, Pods: map[string]int{}}
	var answered sync.Map
	if *control != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) {
			answered.Range(func(pod, _ any) bool {
				_, err := fmt.Fprintln(w, pod)
				return err == nil
			})
		})
		mux.HandleFunc("PUT /end", func(http.ResponseWriter, *http.Request) { cancel() })
		go func() { _ = http.ListenAndServe(*control, mux) }()
	}

	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func() outcome {
		address, err := find()
		if err != nil {
			return outcome{failure: &total.NotFound, err: err}
		}
		body, err := fetch(client, "http://"+address+*path)
		var operation *net.OpError
		switch {
		case err == nil:
			return outcome{pod: string(body[:max(0, len(body)-1)])}
		case errors.As(err, &operation) && operation.Op == "dial":
			return outcome{failure: &total.NotReached, err: err}
		default:
			return outcome{failure: &total.NoAnswer, err: err}
		}
	}

	outcomes := make(chan outcome, 1)
	sent := make(chan int, 1)
	go func() {
		requests := 0
		for tick := time.Tick(time.Second / time.Duration(*rate)); end.Err() == nil; requests++ {
			<-tick
			go func() { outcomes <- ask() }()
		}
		sent <- requests
	}()
	for requests := -1; total.Requests != requests; {
		select {
		case requests = <-sent:
		case o := <-outcomes:
			total.Requests++
			if o.err != nil {
				*o.failure++
				total.Errors[o.err.Error()]++
			} else {
				total.Pods[o.pod]++
				answered.Store(o.pod, true)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(total)
}

func findByDNS(resolver *net.Resolver, name string, port int) (string, error) {
	context, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addresses, err := resolver.LookupHost(context, name)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(addresses[rand.N(len(addresses))], strconv.Itoa(port)), nil
}

func findByConsul(client *http.Client, consul, service string) (string, error) {
	body, err := fetch(client, consul+"/v1/health/service/"+service+"?passing")
	if err != nil {
		return "", err
	}
	var entries []struct {
		Service struct {
			Address string
			Port    int
		}
	}
	if err := json.Unmarshal(body, &entries); err != nil {
		return "", err
	}
	if len(entries) == 0 {
		return "", errors.New("no instance passes")
	}
	chosen := entries[rand.N(len(entries))].Service
	return net.JoinHostPort(chosen.Address, strconv.Itoa(chosen.Port)), nil
}
