package wire

import (
	"context"
	"errors"
	"net"
	"sync"
)

// The states of a gate.
type passing uint8

const (
	passes  passing = iota
	silent          // nothing passes, and nobody is told
	refused         // connections break, and none is made
)

var errBroken = errors.New("connection reset")

// gate is a node's network. Bytes that are written while it is silent pass later.
type gate struct {
	mu      sync.Mutex
	state   passing
	changed chan struct{} // closed and replaced when state changes; nil: nobody waits
	conns   map[*gated]struct{}
}

func (g *gate) set(s passing) {
	g.mu.Lock()
	g.state = s
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
	conns := g.conns
	if s == refused {
		g.conns = nil
	}
	g.mu.Unlock()
	if s == refused {
		for c := range conns {
			_ = c.Conn.Close()
		}
	}
}

// pass waits until something may pass.
func (g *gate) pass(end <-chan struct{}) error {
	for {
		g.mu.Lock()
		s := g.state
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		switch s {
		case passes:
			return nil
		case refused:
			return errBroken
		case silent:
		}
		select {
		case <-changed:
		case <-end:
			return net.ErrClosed
		}
	}
}

func (g *gate) dial(ctx context.Context, to func(context.Context) (net.Conn, error)) (net.Conn, error) {
	if err := g.pass(ctx.Done()); err != nil {
		return nil, err
	}
	conn, err := to(ctx)
	if err != nil {
		return nil, err
	}
	c := &gated{Conn: conn, gate: g, closed: make(chan struct{})}
	g.mu.Lock()
	if g.conns == nil {
		g.conns = map[*gated]struct{}{}
	}
	g.conns[c] = struct{}{}
	g.mu.Unlock()
	return c, nil
}

// gated is a node's end of a connection.
type gated struct {
	net.Conn
	gate   *gate
	closed chan struct{}
	once   sync.Once
}

func (c *gated) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		return n, err
	}
	return n, c.gate.pass(c.closed)
}

func (c *gated) Write(b []byte) (int, error) {
	if err := c.gate.pass(c.closed); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close closes the connection; the other end hears of it only if something
// passes.
func (c *gated) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.gate.mu.Lock()
	mute := c.gate.state == silent
	c.gate.mu.Unlock()
	if mute {
		return nil
	}
	return c.Conn.Close()
}
