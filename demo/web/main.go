// Command web is the demo's and the tests' service: a web server of one static
// file. It answers with its host's name, its version and the caller's address,
// says at /health whether it takes requests, and on SIGTERM finishes those
// that are under way before it ends.
//
// Environment: PORT (8080), VERSION, DELAY (a pause before each answer, as
// 100ms). "web check" asks a running server for its health, for images that
// hold no other program.
package main

import (
	"context"
	"errors"
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

const (
	drainTimeout = 10 * time.Second
	checkTimeout = 2 * time.Second
	maxHeader    = 16 << 10
)

func main() {
	port := env("PORT", "8080")
	if len(os.Args) > 1 && os.Args[1] == "check" {
		if err := check("http://127.0.0.1:" + port + "/health"); err != nil {
			log.Fatal(err)
		}
		return
	}
	delay, err := time.ParseDuration(env("DELAY", "0s"))
	if err != nil {
		log.Fatalf("DELAY: %v", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, ":"+port, env("VERSION", "1"), delay); err != nil {
		log.Fatal(err)
	}
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func serve(ctx context.Context, addr, version string, delay time.Duration) error {
	var draining atomic.Bool
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		if draining.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
		_, _ = fmt.Fprintf(w, "hello from %s, version %s, to %s\n", host, version, r.RemoteAddr)
		log.Printf("%s %s from %s", r.Method, r.URL.Path, r.RemoteAddr)
	})
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	log.SetFlags(0)
	log.Printf("web %s listens on %s", version, l.Addr())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: drainTimeout, MaxHeaderBytes: maxHeader}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	draining.Store(true)
	log.Print("web drains")
	end, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	err = s.Shutdown(end)
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

func check(url string) error {
	c := http.Client{Timeout: checkTimeout}
	r, err := c.Get(url)
	if err != nil {
		return err
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s", r.Status)
	}
	return nil
}
