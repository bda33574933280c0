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
	// maxRelayed bounds the connections, or flows of datagrams, of one port.
	maxRelayed = 1024
	// relayDial bounds how long a container may take to accept.
	relayDial = 10 * time.Second
	// acceptPause is how long to wait after a failure to accept (no more files).
	acceptPause = 50 * time.Millisecond
)

// relay carries what reaches a published port to its target: connections to
// [::1], to an IPv4-only container from IPv6, those of containers that are kept apart,
// and everything where no rules may be made. It is not the main road.
type relay struct {
	p      *Plane
	target netip.AddrPort
	proto  network.Protocol
	ctx    context.Context // ends with the port; never outlives the relay
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu    sync.Mutex
	flows map[flowKey]*flow
}

func newRelay(p *Plane, port *network.Port) *relay {
	r := &relay{p: p, target: port.Target, proto: port.Protocol, slots: make(chan struct{}, maxRelayed), flows: map[flowKey]*flow{}}
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
