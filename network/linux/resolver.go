package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/dns"
)

// resolverAddr is where sandboxes have their resolver.
func resolverAddr() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 11}) }

const (
	dnsPort = 53
	// resolverBuffer holds what comes in a burst: some thousand queries.
	resolverBuffer = 2 << 20
)

// resolvers answer at 127.0.0.11 in sandboxes: a datagram socket and a listener
// in each, on high ports, which rules in the sandbox lead to. Owned by Set.
type resolvers struct {
	p    *Plane
	hub  *dns.Hub
	open map[string]*resolver // by sandbox
}

// resolver is a sandbox's.
type resolver struct {
	server *dns.Server
	config *network.Resolver
	inode  uint64 // of the namespace
	done   chan struct{}
}

func newResolvers(p *Plane) *resolvers {
	return &resolvers{p: p, open: map[string]*resolver{}, hub: dns.NewHub(func(ctx context.Context, proto string, server netip.AddrPort) (c net.Conn, err error) {
		err = p.inHost(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, proto, server.String())
			return err
		})
		return c, err
	}, p.log)}
}

func (s *resolver) close() {
	s.server.Close()
	<-s.done
}

func (r *resolvers) drop(id string) {
	if s := r.open[id]; s != nil {
		s.close()
		delete(r.open, id)
	}
}

func (r *resolvers) close() {
	for id := range r.open {
		r.drop(id)
	}
}

// of returns how the names of a sandbox are resolved now; nil if they are not.
func (r *resolvers) of(sandbox string) *network.Resolver {
	if s := r.open[sandbox]; s != nil {
		return s.config
	}
	return nil
}

// dropResolvers closes the sockets in sandboxes that are about to go: they would
// keep the namespace.
func (p *Plane) dropResolvers(ch *network.Changes) {
	for _, id := range ch.DropSandboxes {
		p.resolvers.drop(id)
	}
}

// Resume implements network.Resumer.
func (p *Plane) Resume(c *network.Config) {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	var there []*network.Sandbox
	for id, s := range c.Sandboxes {
		if s.Resolver != nil && bound(p.Path(id)) {
			there = append(there, s)
		}
	}
	p.resolvers.hub.SetZones(c.Zones)
	var f failures
	p.resolvers.openAll(there, c.Clone(), &f)
	if err := f.err(); err != nil {
		p.log.Debug("network: names are not answered yet", "error", err)
	}
}

// setResolvers makes names, and who answers for them, what they should be. Names
// are the new ones for all queries that arrive after it has returned.
func (p *Plane) setResolvers(ch *network.Changes, now *network.Config, f *failures) {
	r := p.resolvers
	if len(ch.PutZones)+len(ch.DropZones) > 0 {
		r.hub.SetZones(ch.To.Zones)
	}
	now.Zones = ch.To.Zones
	var missing []*network.Sandbox
	for _, s := range ch.PutSandboxes {
		s := now.Sandboxes[s.ID]
		if s == nil {
			continue // it could not be made
		}
		if open := r.open[s.ID]; open != nil && (s.Resolver == nil || open.inode != inode(p.Path(s.ID))) {
			r.drop(s.ID)
			if err := p.inSandbox(p.Path(s.ID), unleadDNS); err != nil {
				p.log.Debug("network: a sandbox's port 53 leads nowhere", "sandbox", s.ID, "error", err)
			}
		}
		switch open := r.open[s.ID]; {
		case s.Resolver == nil:
		case open == nil:
			missing = append(missing, s)
		default:
			open.config = s.Resolver
			open.server.SetResolver(s.Resolver)
		}
	}
	r.openAll(missing, now, f)
}

// openAll opens the sockets of several sandboxes, some at a time. Where that
// fails, the config has no resolver, so that the next Set tries again.
func (r *resolvers) openAll(missing []*network.Sandbox, now *network.Config, f *failures) {
	opened := make([]*resolver, len(missing))
	errs := make([]error, len(missing))
	slots := make(chan struct{}, r.p.workers)
	var wg sync.WaitGroup
	for i, s := range missing {
		slots <- struct{}{}
		wg.Go(func() {
			opened[i], errs[i] = r.listen(s)
			<-slots
		})
	}
	wg.Wait()
	for i, s := range missing {
		if errs[i] == nil {
			r.open[s.ID] = opened[i]
			continue
		}
		f.add(network.SandboxItem(s.ID), fmt.Errorf("its resolver: %w", errs[i]))
		without := *s
		without.Resolver = nil
		now.Sandboxes[s.ID] = &without
	}
}

// listen opens a sandbox's sockets, leads port 53 to them and serves.
func (r *resolvers) listen(s *network.Sandbox) (*resolver, error) {
	path := r.p.Path(s.ID)
	var udp *net.UDPConn
	var tcp *net.TCPListener
	err := r.p.inSandbox(path, func() (err error) {
		if udp, tcp, err = listenDNS(0); err != nil {
			return err
		}
		led := r.p.leadDNS(portOf(udp.LocalAddr()), portOf(tcp.Addr()), true)
		if led == nil {
			return nil
		}
		_, _ = udp.Close(), tcp.Close()
		if udp, tcp, err = listenDNS(dnsPort); err != nil {
			return errors.Join(led, err)
		}
		r.p.log.Warn("network: port 53 of a container's resolver can't be led to another, so the container can't serve it on all addresses",
			"sandbox", s.ID, "error", led)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r.serve(s, udp, tcp), nil
}

// serve answers at a sandbox's sockets.
func (r *resolvers) serve(s *network.Sandbox, udp *net.UDPConn, tcp *net.TCPListener) *resolver {
	path := r.p.Path(s.ID)
	open := &resolver{config: s.Resolver, inode: inode(path), done: make(chan struct{})}
	open.server = r.hub.NewServer(udp, tcp, s.Resolver, func(ctx context.Context, proto string, server netip.AddrPort) (c net.Conn, err error) {
		err = r.p.inSandbox(path, func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, proto, server.String())
			return err
		})
		return c, err
	})
	go func() {
		defer close(open.done)
		open.server.Run(context.Background())
	}()
	return open
}

// adopt takes over what answers in a sandbox that was made anew.
func (r *resolvers) adopt(id string, open *resolver) {
	r.drop(id)
	r.open[id] = open
}

// listenDNS opens sockets at the resolver's address, in the thread's namespace.
func listenDNS(port uint16) (*net.UDPConn, *net.TCPListener, error) {
	at := netip.AddrPortFrom(resolverAddr(), port)
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, nil, err
	}
	if raw, err := udp.SyscallConn(); err == nil { // a smaller one will do
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, resolverBuffer)
		})
	}
	plain := net.ListenConfig{} // one of several paths costs more, and there is one
	plain.SetMultipathTCP(false)
	l, err := plain.Listen(context.Background(), "tcp4", at.String())
	if err != nil {
		return nil, nil, errors.Join(err, udp.Close())
	}
	return udp, l.(*net.TCPListener), nil
}

func portOf(a net.Addr) uint16 {
	p, _ := netip.ParseAddrPort(a.String())
	return p.Port()
}

// inSandbox runs f on a thread in a sandbox's namespace.
func (p *Plane) inSandbox(path string, f func() error) error {
	return p.onThread(func() error {
		if err := inNamespace(path); err != nil {
			return err
		}
		return f()
	})
}

// inode tells one namespace that was bound to a path from the next; 0: there is
// none.
func inode(path string) uint64 {
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return 0
	}
	return s.Ino
}
