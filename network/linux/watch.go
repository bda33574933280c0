package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

const (
	watchBuffer = 1 << 20
	nftMessages = unix.NFNL_SUBSYS_NFTABLES << 8
	// nftaGenID is the attribute of a NEWGEN message with the generation.
	nftaGenID = 1
)

// Watch implements network.Dataplane: it listens to the kernel's own reports,
// and costs nothing while nothing happens.
func (p *Plane) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var route, filter *os.File
	err := p.inHost(func() (err error) {
		route, err = subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
		if err != nil {
			return err
		}
		if filter, err = subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err != nil {
			_ = route.Close()
		}
		return err
	})
	if err != nil {
		return err
	}
	alarm := func() {
		p.stale.Store(true)
		changed()
	}
	var wg sync.WaitGroup
	wg.Go(func() { cancel(receive(route, alarm, p.routeDrift)) })
	wg.Go(func() { cancel(receive(filter, alarm, p.rulesDrift)) })
	wg.Go(func() {
		for {
			select {
			case <-p.alarms: // from an overlay's namespace
				changed()
			case <-ctx.Done():
				return
			}
		}
	})
	<-ctx.Done()
	_ = route.Close()
	_ = filter.Close()
	wg.Wait()
	return context.Cause(ctx)
}

// subscribe opens a netlink socket in the thread's namespace that hears groups.
func subscribe(family int, groups ...int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, fmt.Errorf("watch the kernel's network: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) // a smaller one will do
	if family == unix.NETLINK_ROUTE {
		_ = hearLess(fd) // without, it wakes for more
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, g := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch the kernel's network: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// receive reads messages until the socket is closed, and raises the alarm for
// those that say that something is not as it should be, or when some were lost.
func receive(f *os.File, alarm func(), drift func(kind uint16, data []byte) bool) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			alarm()
			continue
		}
		if err != nil {
			return fmt.Errorf("watch the kernel's network: %w", err)
		}
		whole := received(buf[:n], func(kind uint16, _ uint32, d []byte) bool {
			if drift(kind, d) {
				alarm()
			}
			return true
		})
		if !whole {
			alarm()
		}
	}
}

// routeDrift reports whether a message tells of a device of ours that is gone,
// down, off its bridge or without an address, of a route or rule of ours that is
// gone, or of an address that a published port is to be answered on.
func (p *Plane) routeDrift(kind uint16, d []byte) bool {
	switch kind {
	case unix.RTM_DELADDR, unix.RTM_NEWADDR:
		if linkScope(d) && d[0] == unix.AF_INET6 {
			return false // the kernel's own: each pair comes and goes with one
		}
		p.addrsChanged.Store(true)
		return kind == unix.RTM_DELADDR || p.meshRestricted()
	case unix.RTM_DELROUTE, unix.RTM_DELRULE:
		return p.meshRouteGone(d)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
	default:
		return false
	}
	l, ok := readLink(d)
	if !ok {
		return false
	}
	gone := kind == unix.RTM_DELLINK || !l.up
	if l.name == p.meshDevice() {
		return p.meshWanted() && (gone || !l.carries)
	}
	bridge, veth := p.knows(l.name)
	if !(bridge && gone || veth && (gone || !l.master)) || !p.amiss(l.name, veth) {
		return false
	}
	bridge, veth = p.knows(l.name) // or a Set has removed it meanwhile
	return bridge || veth
}

// amiss reports whether a device of the host is not there, down, or off its bridge
// though it should be a port. What is heard of it may be old: of when it was made.
func (p *Plane) amiss(name string, port bool) bool {
	h, err := p.handle()
	if err != nil {
		return true
	}
	defer p.put(h)
	return linkAmiss(h, name, port)
}

func linkAmiss(h *netlink.Handle, name string, port bool) bool {
	l, err := h.LinkByName(name)
	return err != nil || l.Attrs().Flags&net.FlagUp == 0 || port && l.Attrs().MasterIndex == 0
}

// knows reports what a device is to us.
func (p *Plane) knows(name string) (bridge, veth bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have != nil && p.have.Bridges[name] != nil, p.veths[name]
}

// unexpect says that interfaces are about to go, which is then no damage.
func (p *Plane) unexpect(interfaces []network.Interface) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range interfaces {
		delete(p.veths, interfaces[i].HostName)
	}
}

// meshWanted reports whether this node has a part in the routing mesh.
func (p *Plane) meshWanted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have != nil && p.have.Mesh != nil
}

// meshRestricted reports whether a port of the mesh is published on some of the
// host's addresses only, so that a new one matters.
func (p *Plane) meshRestricted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have == nil {
		return false
	}
	for _, m := range p.have.MeshPorts {
		if len(m.On)+len(m.Devices) > 0 {
			return true
		}
	}
	return false
}

// meshRouteGone reports whether a message tells that a route in the routing
// mesh's table, or a rule that leads there, is gone. Its layout is that of both
// (struct rtmsg, struct fib_rule_hdr); so is the attribute's number.
func (p *Plane) meshRouteGone(d []byte) bool {
	if !p.meshWanted() {
		return false
	}
	if len(d) < unix.SizeofRtMsg {
		return true
	}
	for attr, v := range attributes(d[unix.SizeofRtMsg:]) {
		if attr == unix.RTA_TABLE && len(v) >= 4 {
			return binary.NativeEndian.Uint32(v) == meshTables+p.meshNumber()
		}
	}
	return false
}

// rulesDrift reports whether a message tells of a change of rules that we did
// not make.
func (p *Plane) rulesDrift(kind uint16, d []byte) bool {
	const header = 4 // nfgenmsg
	if kind != nftMessages|unix.NFT_MSG_NEWGEN || len(d) < header {
		return false
	}
	for attr, v := range attributes(d[header:]) {
		if attr == nftaGenID && len(v) == 4 {
			return !p.gens.has(binary.BigEndian.Uint32(v))
		}
	}
	return true
}
