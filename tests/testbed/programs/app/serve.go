package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// server answers as its test tells it to. All of it is up until it is told otherwise.
type server struct {
	healthy atomic.Bool // for GET /health and for gRPC
	ready   atomic.Bool // for GET /ready
	name    string
}

func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	httpAddress := flags.String("http", ":8080", "where HTTP is served")
	grpcAddress := flags.String("grpc", ":9090", "where gRPC health is served, without TLS")
	tcpAddress := flags.String("tcp", ":7070", "where TCP connections are taken and closed")
	unready := flags.Bool("unready", false, "begin with /ready failing")
	crash := flags.Duration("crash", 0, "end with 1 after this time; 0 is never")
	_ = flags.Parse(args)

	name, err := os.Hostname()
	if err != nil {
		return err
	}
	s := &server{name: name}
	s.healthy.Store(true)
	s.ready.Store(!*unready)

	web := &http.Server{Handler: s.web()}
	grpc := &http.Server{Handler: http.HandlerFunc(s.grpcHealth), Protocols: new(http.Protocols)}
	grpc.Protocols.SetUnencryptedHTTP2(true)
	ended := make(chan error, 3)
	for _, part := range []struct {
		address string
		run     func(net.Listener) error
	}{
		{*httpAddress, web.Serve},
		{*grpcAddress, grpc.Serve},
		{*tcpAddress, hangUp},
	} {
		listener, err := net.Listen("tcp", part.address)
		if err != nil {
			return err
		}
		go func() { ended <- part.run(listener) }()
	}
	log.Printf("%s serves HTTP at %s, gRPC at %s, TCP at %s", name, *httpAddress, *grpcAddress, *tcpAddress)
	if *crash > 0 {
		time.AfterFunc(*crash, func() { log.Fatal("crashing, as told") })
	}

	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-ended:
		return err
	case <-terminated:
	}
	// New connections are refused from here on; requests under way are answered.
	_ = web.Shutdown(context.Background())
	return nil
}

func (s *server) web() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.name) })
	switches := map[string]*atomic.Bool{"/health": &s.healthy, "/ready": &s.ready}
	for path, state := range switches {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if !state.Load() {
				http.Error(w, "told to fail", http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
		// PUT /health?ok=false has it fail from now on.
		mux.HandleFunc("PUT "+path, func(_ http.ResponseWriter, r *http.Request) {
			state.Store(r.URL.Query().Get("ok") != "false")
		})
	}
	mux.HandleFunc("PUT /crash", func(http.ResponseWriter, *http.Request) { log.Fatal("crashing, as told") })
	return mux
}

// grpcHealth answers grpc.health.v1.Health/Check for every service alike. A gRPC message is a flag, its
// length in four bytes, and here one field: 1, of wire type varint, with the status.
func (s *server) grpcHealth(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	if r.URL.Path != "/grpc.health.v1.Health/Check" {
		const unimplemented = "12"
		w.Header().Set("Grpc-Status", unimplemented)
		return
	}
	const serving, notServing = 1, 2
	status := byte(notServing)
	if s.healthy.Load() {
		status = serving
	}
	_, _ = w.Write([]byte{0, 0, 0, 0, 2, 1 << 3, status})
	w.Header().Set("Grpc-Status", "0")
}

// hangUp takes connections and closes them: all that a TCP check wants.
func hangUp(listener net.Listener) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		_ = connection.Close()
	}
}
