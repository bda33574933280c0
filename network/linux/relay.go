package linux

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/legion-swarm/legion/network"
)

const (
	// maxRelayed bounds the connections, or UDP clients, of one port.
	maxRelayed = 1024
	// relayDial bounds how long a container may take to accept.
	relayDial = 10 * time.Second
	// udpIdle is how long a UDP client may be silent.
	udpIdle = 90 * time.Second
	// relayBuffer is the largest datagram.
	relayBuffer = 64 << 10
	// acceptPause is how long to wait after a failure to accept (no more files).
	acceptPause = 50 * time.Millisecond
)

// relay carries what reaches a published port to its target: connections to
// [::1], to an IPv4-only container from IPv6, and everything where no rules may
// be made. It is not the main road.
type relay struct {
	p      *Plane
	target netip.AddrPort
	proto  network.Protocol
	ctx    context.Context // ends with the port; never outlives the relay
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu      sync.Mutex
	clients map[netip.AddrPort]*net.UDPConn
}

func newRelay(p *Plane, port *network.Port) *relay {
	r := &relay{p: p, target: port.Target, proto: port.Protocol, slots: make(chan struct{}, maxRelayed), clients: map[netip.AddrPort]*net.UDPConn{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

func (r *relay) stop() { r.cancel() }

// accept takes connections until the listener is closed.
func (r *relay) accept(l *net.TCPListener) {
	defer r.wg.Wait()
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-r.ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case r.slots <- struct{}{}:
			r.wg.Go(func() {
				r.connection(c)
				<-r.slots
			})
		default:
			_ = c.SetLinger(0)
			c.Close() // full: refused, as by a full backlog
		}
	}
}

func (r *relay) connection(c *net.TCPConn) {
	defer c.Close()
	var t net.Conn
	err := r.p.inHost(func() (err error) {
		t, err = (&net.Dialer{Timeout: relayDial}).DialContext(r.ctx, tcpNetwork(r.target.Addr()), r.target.String())
		return err
	})
	if err != nil {
		_ = c.SetLinger(0)
		return
	}
	defer t.Close()
	end := context.AfterFunc(r.ctx, func() { c.Close(); t.Close() })
	defer end()
	var both sync.WaitGroup
	pipe := func(to, from *net.TCPConn) {
		_, _ = io.Copy(to, from) // an end like any other
		_ = to.CloseWrite()
		_ = from.CloseRead()
	}
	both.Go(func() { pipe(t.(*net.TCPConn), c) })
	both.Go(func() { pipe(c, t.(*net.TCPConn)) })
	both.Wait()
}

// datagrams carries datagrams until the socket is closed. Each client has a
// socket of its own towards the target.
func (r *relay) datagrams(l *net.UDPConn) {
	defer r.wg.Wait()
	buf := make([]byte, relayBuffer)
	for {
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for some client
		}
		if t := r.client(l, from); t != nil {
			_, _ = t.Write(buf[:n]) // as lossy as UDP
		}
	}
}

// client returns the socket for a client; nil if there are too many.
func (r *relay) client(l *net.UDPConn, from netip.AddrPort) *net.UDPConn {
	r.mu.Lock()
	t := r.clients[from]
	full := len(r.clients) >= maxRelayed
	r.mu.Unlock()
	if t != nil || full {
		return t
	}
	err := r.p.inHost(func() (err error) {
		t, err = net.DialUDP(udpNetwork(r.target.Addr()), nil, net.UDPAddrFromAddrPort(r.target))
		return err
	})
	if err != nil {
		return nil
	}
	r.mu.Lock()
	r.clients[from] = t
	r.mu.Unlock()
	r.wg.Go(func() {
		r.answers(l, t, from)
		r.mu.Lock()
		delete(r.clients, from)
		r.mu.Unlock()
	})
	return t
}

// answers carries what the target sends back until it has been silent.
func (r *relay) answers(l, t *net.UDPConn, to netip.AddrPort) {
	defer t.Close()
	defer context.AfterFunc(r.ctx, func() { t.Close() })()
	buf := make([]byte, relayBuffer)
	for {
		_ = t.SetReadDeadline(time.Now().Add(udpIdle))
		n, err := t.Read(buf)
		if err != nil {
			return
		}
		if _, err := l.WriteToUDPAddrPort(buf[:n], to); err != nil {
			return
		}
	}
}
