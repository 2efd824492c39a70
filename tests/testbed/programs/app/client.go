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
	"time"
)

func lookup(names []string) error {
	if len(names) == 0 {
		return errors.New("lookup: which name?")
	}
	for _, name := range names {
		addresses, err := net.LookupHost(name)
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
	Requests int            `json:"requests"`
	Failures int            `json:"failures"`
	Errors   map[string]int `json:"errors,omitempty"`
	// How many answers came from each pod.
	Pods map[string]int `json:"pods"`
}

// load asks a service at an even rate, each time at an address that it finds anew, over a connection of its own: what
// a client sees that keeps nothing and tries nothing twice.
func load(args []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	dns := flags.String("dns", "", "find the service by this name in DNS")
	port := flags.Int("port", 8080, "its port, with -dns")
	consul := flags.String("consul", "", "find the service at this Consul, http://HOST:PORT")
	service := flags.String("service", "", "its name, with -consul")
	path := flags.String("path", "/", "what to ask for")
	rate := flags.Int("rate", 50, "requests a second")
	duration := flags.Duration("duration", 10*time.Second, "for how long")
	_ = flags.Parse(args)

	finder := &http.Client{Timeout: 2 * time.Second}
	find := func() (string, error) { return findByDNS(*dns, *port) }
	if *consul != "" {
		find = func() (string, error) { return findByConsul(finder, *consul, *service) }
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

	type outcome struct {
		pod string
		err error
	}
	outcomes := make(chan outcome, 1)
	end := time.Now().Add(*duration)
	sent := make(chan int, 1)
	go func() {
		requests := 0
		for tick := time.Tick(time.Second / time.Duration(*rate)); time.Now().Before(end); requests++ {
			<-tick
			go func() {
				address, err := find()
				if err != nil {
					outcomes <- outcome{err: fmt.Errorf("not found: %w", err)}
					return
				}
				body, err := fetch(client, "http://"+address+*path)
				outcomes <- outcome{pod: string(body), err: err}
			}()
		}
		sent <- requests
	}()

	total := result{Errors: map[string]int{}, Pods: map[string]int{}}
	for requests := -1; total.Requests != requests; {
		select {
		case requests = <-sent:
		case o := <-outcomes:
			total.Requests++
			if o.err != nil {
				total.Failures++
				total.Errors[o.err.Error()]++
			} else {
				total.Pods[o.pod[:max(0, len(o.pod)-1)]]++
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(total)
}

func findByDNS(name string, port int) (string, error) {
	context, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(context, name)
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
