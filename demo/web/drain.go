package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	backlogTime  = 100 * time.Millisecond // for connections that wait to be accepted, once it drains
	idleTimeout  = 2 * time.Second        // for connections without a request, once it drains
	drainTimeout = 7 * time.Second        // for requests, after that
	maxHeader    = 16 << 10
)

// serve accepts connections until ctx is done, and then drains: it accepts those that
// the kernel has taken already, and no more, goes on to answer what comes over
// connections that are open, each with the word that it was the last one, and returns
// when none is left. A server that closed its idle connections at once would lose the
// request that is on its way over one of them.
func (f *front) serve(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	log.Printf("web %s listens on %s", f.version, l.Addr())
	open := &connections{all: map[net.Conn]bool{}, none: make(chan struct{}, 1)}
	s := &http.Server{Handler: f.handler(), ReadHeaderTimeout: drainTimeout, MaxHeaderBytes: maxHeader, ConnState: open.note}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	f.draining.Store(true)
	log.Print("web drains")
	time.Sleep(backlogTime) // the kernel resets what has not been accepted when it closes
	err = l.Close()
	if e := <-served; !errors.Is(e, net.ErrClosed) {
		err = errors.Join(err, e)
	}
	open.wait(idleTimeout)
	end, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	return errors.Join(err, s.Shutdown(end))
}

// connections are those that are open.
type connections struct {
	mu   sync.Mutex
	all  map[net.Conn]bool
	none chan struct{} // told when the last one closes
}

func (o *connections) note(c net.Conn, s http.ConnState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch s {
	case http.StateNew:
		o.all[c] = true
	case http.StateClosed, http.StateHijacked:
		delete(o.all, c)
	default:
		return
	}
	if len(o.all) == 0 {
		select {
		case o.none <- struct{}{}:
		default:
		}
	}
}

// wait returns when none is open, or time is up.
func (o *connections) wait(most time.Duration) {
	up := time.NewTimer(most)
	defer up.Stop()
	for {
		o.mu.Lock()
		n := len(o.all)
		o.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-o.none:
		case <-up.C:
			return
		}
	}
}
