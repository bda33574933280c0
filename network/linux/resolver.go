package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/crypt"
	"github.com/legion-swarm/legion/network/linux/keeper"
)

// resolverAddr is where sandboxes have their resolver.
func resolverAddr() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 11}) }

const (
	dnsPort = 53
	// resolverBuffer holds what comes in a burst: some thousand queries.
	resolverBuffer = 2 << 20
	// resolverBacklog is of connections that wait to be accepted.
	resolverBacklog = 128
)

// opened is a resolver of a sandbox with its sockets, on high ports, which rules in
// the sandbox lead to. The keeper takes them.
type opened struct {
	keeper.Resolver
	udp, tcp int
}

func (o *opened) close() { _, _ = unix.Close(o.udp), unix.Close(o.tcp) }

// answer has the keeper answer at sockets, which it takes.
func (p *Plane) answer(all []*opened) error {
	l, files := make([]keeper.Resolver, len(all)), make([]int, 0, 2*len(all))
	for i, o := range all {
		l[i], files = o.Resolver, append(files, o.udp, o.tcp)
	}
	return p.keeper.Answer(l, files)
}

// resolverOf returns how the names of a sandbox are resolved now; nil if they are not.
func (p *Plane) resolverOf(sandbox string) *network.Resolver {
	r, _ := p.keeper.Resolver(sandbox)
	return r.Config
}

// takeOver has the keeper of an earlier daemon go on, but for sandboxes that are not
// there any more. Nodes of endpoints that nobody has told yet are those that it knows.
func (p *Plane) takeOver() error {
	if err := p.keeper.Find(); err != nil {
		return err
	}
	var gone []string
	for _, r := range p.keeper.Resolvers() {
		if r.Inode != inode(p.Path(r.Sandbox)) {
			gone = append(gone, r.Sandbox)
		}
	}
	err := p.keeper.Forget(gone)
	if p.cryptNodes == nil {
		p.cryptNodes = map[string]map[crypt.MAC]netip.Addr{}
		for id, peers := range p.keeper.Peers() {
			p.cryptNodes[id] = peers.Nodes
		}
	}
	return err
}

// dropResolvers closes the sockets in sandboxes that are about to go: they would
// keep the namespace.
func (p *Plane) dropResolvers(ch *network.Changes) {
	if err := p.keeper.Forget(ch.DropSandboxes); err != nil {
		p.log.Warn("network: sockets in sandboxes are closed late", "error", err)
	}
}

// Resume implements network.Resumer.
func (p *Plane) Resume(c *network.Config) {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	err := p.takeOver()
	var missing []*network.Sandbox
	var others []keeper.Resolver
	for id, s := range c.Sandboxes {
		if s.Resolver == nil || !bound(p.Path(id)) {
			continue
		}
		if r, answers := p.keeper.Resolver(id); !answers {
			missing = append(missing, s)
		} else if !r.Config.Equal(s.Resolver) {
			r.Config = s.Resolver
			others = append(others, r)
		}
	}
	err = errors.Join(err, p.keeper.SetZones(c.Zones))
	if len(others) > 0 {
		err = errors.Join(err, p.keeper.Resolve(others))
	}
	var f failures
	p.openAll(missing, c.Clone(), &f)
	if err := errors.Join(err, f.err()); err != nil {
		p.log.Debug("network: names are not answered yet", "error", err)
	}
}

// setResolvers makes names, and who answers for them, what they should be. Names
// are the new ones for all queries that arrive after it has returned.
func (p *Plane) setResolvers(ch *network.Changes, now *network.Config, f *failures) {
	now.Zones = ch.To.Zones
	if len(ch.PutZones)+len(ch.DropZones) > 0 {
		if err := p.keeper.SetZones(ch.To.Zones); err != nil {
			f.add(network.RulesItem, err)
			now.Zones = map[string]*network.Zone{} // all are told again
		}
	}
	var missing []*network.Sandbox
	var others []keeper.Resolver
	for _, s := range ch.PutSandboxes {
		s := now.Sandboxes[s.ID]
		if s == nil {
			continue // it could not be made
		}
		open, answers := p.keeper.Resolver(s.ID)
		if answers && (s.Resolver == nil || open.Inode != inode(p.Path(s.ID))) {
			answers = p.unresolve(s.ID, f)
		}
		switch {
		case s.Resolver == nil:
		case !answers:
			missing = append(missing, s)
		case !s.Resolver.Equal(open.Config):
			open.Config = s.Resolver
			others = append(others, open)
		}
	}
	if len(others) > 0 {
		if err := p.keeper.Resolve(others); err != nil {
			for _, r := range others {
				p.unresolved(r.Sandbox, err, now, f)
			}
		}
	}
	p.openAll(missing, now, f)
}

// unresolve ends a sandbox's resolver. It reports whether it is still there.
func (p *Plane) unresolve(id string, f *failures) bool {
	if err := p.keeper.Forget([]string{id}); err != nil {
		f.add(network.SandboxItem(id), err)
		return true
	}
	if err := p.inSandbox(p.Path(id), unleadDNS); err != nil {
		p.log.Debug("network: a sandbox's port 53 leads nowhere", "sandbox", id, "error", err)
	}
	return false
}

// unresolved says that a sandbox's resolver is not what it should be, so that the
// next Set tries again.
func (p *Plane) unresolved(id string, err error, now *network.Config, f *failures) {
	f.add(network.SandboxItem(id), fmt.Errorf("its resolver: %w", err))
	without := *now.Sandboxes[id]
	without.Resolver = nil
	now.Sandboxes[id] = &without
}

// openAll opens the sockets of several sandboxes, some at a time. Where that
// fails, the config has no resolver.
func (p *Plane) openAll(missing []*network.Sandbox, now *network.Config, f *failures) {
	sockets := make([]*opened, len(missing))
	errs := make([]error, len(missing))
	slots := make(chan struct{}, p.workers)
	var wg sync.WaitGroup
	for i, s := range missing {
		slots <- struct{}{}
		wg.Go(func() {
			sockets[i], errs[i] = p.listen(s)
			<-slots
		})
	}
	wg.Wait()
	if all := slices.DeleteFunc(slices.Clone(sockets), func(o *opened) bool { return o == nil }); len(all) > 0 {
		if err := p.answer(all); err != nil {
			for i := range errs {
				errs[i] = errors.Join(errs[i], err)
			}
		}
	}
	for i, s := range missing {
		if errs[i] != nil {
			p.unresolved(s.ID, errs[i], now, f)
		}
	}
}

// listen opens a sandbox's sockets and leads port 53 to them.
func (p *Plane) listen(s *network.Sandbox) (o *opened, err error) {
	err = p.inSandbox(p.Path(s.ID), func() (err error) {
		var udp, tcp uint16
		if o, udp, tcp, err = p.listenDNS(s, 0); err != nil {
			return err
		}
		led := p.leadDNS(udp, tcp, true)
		if led == nil {
			return nil
		}
		o.close()
		if o, _, _, err = p.listenDNS(s, dnsPort); err != nil {
			return errors.Join(led, err)
		}
		p.log.Warn("network: port 53 of a container's resolver can't be led to another, so the container can't serve it on all addresses",
			"sandbox", s.ID, "error", led)
		return nil
	})
	return o, err
}

// listenDNS opens sockets at the resolver's address, in the thread's namespace, which
// is the sandbox's, and returns their ports.
func (p *Plane) listenDNS(s *network.Sandbox, port uint16) (o *opened, udp, tcp uint16, err error) {
	o = &opened{Resolver: keeper.Resolver{Sandbox: s.ID, Inode: inode(p.Path(s.ID)), Config: s.Resolver}}
	if o.udp, udp, err = bindDNS(unix.SOCK_DGRAM, port); err != nil {
		return nil, 0, 0, err
	}
	_ = unix.SetsockoptInt(o.udp, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, resolverBuffer) // a smaller one will do
	if o.tcp, tcp, err = bindDNS(unix.SOCK_STREAM, port); err != nil {
		_ = unix.Close(o.udp)
		return nil, 0, 0, err
	}
	return o, udp, tcp, nil
}

// bindDNS opens a socket, of a stream one that listens, and returns its port.
func bindDNS(kind int, port uint16) (fd int, at uint16, err error) {
	fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, 0, os.NewSyscallError("socket", err)
	}
	if kind == unix.SOCK_STREAM { // connections of an earlier one may linger
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: resolverAddr().As4()}))
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = os.NewSyscallError("listen", unix.Listen(fd, resolverBacklog))
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	is, ok := name.(*unix.SockaddrInet4)
	if err != nil || !ok {
		return -1, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, uint16(is.Port), nil
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
