package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// sockets hold the published ports of the host, so that no other process gets
// one and one that another has is noticed. What reaches them, because no rule
// translates it, is relayed if the config allows it.
type sockets struct {
	p    *Plane
	held map[network.PortKey]*socket
	wg   sync.WaitGroup // relays
}

// socket holds one port.
type socket struct {
	target netip.AddrPort
	relay  bool
	close  func()
}

func newSockets(p *Plane) *sockets { return &sockets{p: p, held: map[network.PortKey]*socket{}} }

func (s *sockets) close() {
	s.dropAll()
	s.wg.Wait()
}

// dropAll frees all ports.
func (s *sockets) dropAll() {
	for k, h := range s.held {
		h.close()
		delete(s.held, k)
	}
}

// drop frees a port.
func (s *sockets) drop(k network.PortKey) {
	if h := s.held[k]; h != nil {
		h.close()
		delete(s.held, k)
	}
}

// hold takes a port, or changes where what is relayed goes.
func (s *sockets) hold(port *network.Port, relay bool) error {
	if h := s.held[port.PortKey]; h != nil {
		if h.target == port.Target && h.relay == relay {
			return nil
		}
		s.drop(port.PortKey)
	}
	var h *socket
	err := s.p.inHost(func() (err error) {
		switch {
		case relay && port.Protocol == network.TCP:
			h, err = s.listen(port)
		case relay && port.Protocol == network.UDP:
			h, err = s.packets(port)
		default:
			h, err = reserve(port)
		}
		return err
	})
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = network.ErrPortInUse
		}
		return err
	}
	h.target, h.relay = port.Target, relay
	s.held[port.PortKey] = h
	return nil
}

// reserve binds a port and does nothing with it.
func reserve(port *network.Port) (*socket, error) {
	family, kind, proto := unix.AF_INET, unix.SOCK_STREAM, 0
	switch port.Protocol {
	case network.UDP:
		kind = unix.SOCK_DGRAM
	case network.SCTP:
		proto = unix.IPPROTO_SCTP
	}
	a := port.Host.Addr()
	var sa unix.Sockaddr
	if a.Is4() {
		sa = &unix.SockaddrInet4{Port: int(port.Host.Port()), Addr: a.As4()}
	} else {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(port.Host.Port()), Addr: a.As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if port.Protocol == network.SCTP && errors.Is(err, unix.EPROTONOSUPPORT) {
		return &socket{close: func() {}}, nil // no process of the host can have it either
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &socket{close: func() { unix.Close(fd) }}, nil
}

// setPorts takes and frees host ports. The rules come later.
func (p *Plane) setPorts(ch *network.Changes, now *network.Config, f *failures) {
	for _, k := range ch.DropPorts {
		p.sockets.drop(k)
		delete(now.Ports, k)
	}
	for _, port := range ch.PutPorts {
		now.Ports[port.PortKey] = port
	}
	for k, port := range now.Ports {
		if port.Open {
			continue // none of the host's
		}
		if err := p.sockets.hold(port, now.UserProxy); err != nil {
			f.add(network.PortItem(k), err)
			delete(now.Ports, k)
		}
	}
}

func tcpNetwork(a netip.Addr) string { return family("tcp", a) }
func udpNetwork(a netip.Addr) string { return family("udp", a) }

func family(proto string, a netip.Addr) string {
	if a.Is4() {
		return proto + "4"
	}
	return proto + "6"
}

// listen accepts what reaches a port and relays it.
func (s *sockets) listen(port *network.Port) (*socket, error) {
	l, err := net.ListenTCP(tcpNetwork(port.Host.Addr()), net.TCPAddrFromAddrPort(port.Host))
	if err != nil {
		return nil, err
	}
	r := newRelay(s.p, port)
	s.wg.Go(func() { r.accept(l) })
	return &socket{close: func() { l.Close(); r.stop() }}, nil
}

// packets relays datagrams that reach a port.
func (s *sockets) packets(port *network.Port) (*socket, error) {
	c, err := net.ListenUDP(udpNetwork(port.Host.Addr()), net.UDPAddrFromAddrPort(port.Host))
	if err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	if err := tellArrival(c, port.Host.Addr().Is6()); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("ask where datagrams arrive: %w", err)
	}
	r := newRelay(s.p, port)
	s.wg.Go(func() { r.datagrams(c) })
	return &socket{close: func() { c.Close(); r.stop() }}, nil
}
