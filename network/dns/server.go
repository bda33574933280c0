package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legion-swarm/legion/network"
)

// Server answers the queries of one sandbox. Datagrams that names can answer
// are answered by one goroutine, one after the other; what is forwarded has a
// goroutine and a socket each, with a bound on how many.
type Server struct {
	hub      *Hub
	inside   Dial
	udp      *net.UDPConn
	tcp      *net.TCPListener
	resolver atomic.Pointer[network.Resolver]
	slots    atomic.Int32 // forwards under way
	conns    atomic.Int32
	wg       sync.WaitGroup
}

// NewServer returns a server for sockets, which it owns. inside reaches servers
// from the sandbox. Call Run, or Close.
func (h *Hub) NewServer(udp *net.UDPConn, tcp *net.TCPListener, r *network.Resolver, inside Dial) *Server {
	s := &Server{hub: h, inside: inside, udp: udp, tcp: tcp}
	s.resolver.Store(r)
	return s
}

// SetResolver changes how names are resolved, for queries that arrive after it
// has returned.
func (s *Server) SetResolver(r *network.Resolver) { s.resolver.Store(r) }

// Close closes the sockets, which ends Run.
func (s *Server) Close() {
	_ = s.udp.Close()
	_ = s.tcp.Close()
}

// Run serves until ctx ends or Close is called; the sockets are closed and
// nothing is under way when it returns.
func (s *Server) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, s.Close)()
	s.wg.Go(func() { s.accept(ctx) })
	s.datagrams(ctx)
	cancel()
	s.Close()
	s.wg.Wait()
}

// datagrams answers until the socket is closed.
func (s *Server) datagrams(ctx context.Context) {
	in, out := make([]byte, maxQuery), make([]byte, 0, minUDP)
	var q query
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(in)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			wait(ctx, pause)
			continue
		case n == len(in):
			continue // and perhaps more: not from a resolver
		}
		r := s.resolver.Load()
		var v verdict
		if out, v = decide(out, in[:n], &q, s.hub.names.Load(), r, true, anyStart()); v == forward {
			out, v = s.forwardDatagram(ctx, out, in[:n], &q, from)
		}
		if v == answer {
			_, _ = s.udp.WriteToUDPAddrPort(out, from) // as lossy as UDP
		}
	}
}

// wait lets time go by, or ctx end.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// forwardDatagram has a goroutine ask others and answer. If too many do,
// the answer is that it failed.
func (s *Server) forwardDatagram(ctx context.Context, out, m []byte, q *query, from netip.AddrPort) ([]byte, verdict) {
	if !s.acquire() {
		return refuse(out, q, ServerFailure), answer
	}
	m = bytes.Clone(m)
	s.wg.Go(func() {
		defer s.release()
		if a := s.forwarded(ctx, "udp", m); a != nil {
			_, _ = s.udp.WriteToUDPAddrPort(a, from)
		}
	})
	return out, ignore
}

// forwarded returns what others answer, or that they failed; nil if ctx ended.
// The message, which has been read before, is the callee's.
func (s *Server) forwarded(ctx context.Context, proto string, m []byte) []byte {
	q := &query{}
	q.parse(m)
	r := s.resolver.Load()
	if len(r.Servers) == 0 { // since it was decided
		return refuse(nil, q, NameError)
	}
	a, err := s.exchange(ctx, proto, m, q, r.Servers, r.Inside)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return refuse(nil, q, ServerFailure)
	}
	return a
}

// acquire takes the right to forward a query, of this sandbox and of all.
func (s *Server) acquire() bool {
	if s.slots.Add(1) > maxOwnForwards {
		s.slots.Add(-1)
		return false
	}
	select {
	case s.hub.slots <- struct{}{}:
		return true
	default:
		s.slots.Add(-1)
		return false
	}
}

func (s *Server) release() {
	<-s.hub.slots
	s.slots.Add(-1)
}

// accept takes connections until the listener is closed.
func (s *Server) accept(ctx context.Context) {
	for {
		c, err := s.tcp.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			wait(ctx, pause)
			continue
		}
		if s.conns.Add(1) > maxConns {
			s.conns.Add(-1)
			_ = c.SetLinger(0)
			_ = c.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.conns.Add(-1)
			defer c.Close()
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			s.stream(ctx, c)
		})
	}
}

// stream answers a connection's queries, one after the other.
func (s *Server) stream(ctx context.Context, c *net.TCPConn) {
	var q query
	var in, out []byte
	for {
		_ = c.SetDeadline(time.Now().Add(idle))
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > maxQuery {
			return
		}
		in = append(in[:0], make([]byte, n)...)
		if _, err := io.ReadFull(c, in); err != nil {
			return
		}
		var v verdict
		if out, v = decide(out, in, &q, s.hub.names.Load(), s.resolver.Load(), false, anyStart()); v == forward {
			out = s.forwardStream(ctx, in, &q)
		}
		if v == ignore || out == nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(idle))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

// forwardStream returns what others answer; nil if ctx ended.
func (s *Server) forwardStream(ctx context.Context, m []byte, q *query) []byte {
	if !s.acquire() {
		return refuse(nil, q, ServerFailure)
	}
	defer s.release()
	return s.forwarded(ctx, "tcp", bytes.Clone(m))
}
