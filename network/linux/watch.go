package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
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
func receive(f *os.File, alarm func(), drift func(syscall.NetlinkMessage) bool) error {
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
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			alarm()
			continue
		}
		for _, m := range messages {
			if drift(m) {
				alarm()
			}
		}
	}
}

// routeDrift reports whether a message tells of a device of ours that is gone,
// down, off its bridge or without an address, of a route or rule of ours that is
// gone, or of an address that a published port is to be answered on.
func (p *Plane) routeDrift(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_DELADDR:
		p.addrsChanged.Store(true)
		return true
	case unix.RTM_NEWADDR:
		p.addrsChanged.Store(true)
		return p.meshRestricted()
	case unix.RTM_DELROUTE, unix.RTM_DELRULE:
		return p.meshRouteGone(m)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
	default:
		return false
	}
	name, up, master, ok := linkMessage(m)
	if !ok {
		return false
	}
	flags := binary.NativeEndian.Uint32(m.Data[8:])
	bridge, veth := p.knows(name)
	if name == p.meshDevice() {
		return p.meshWanted() && (m.Header.Type == unix.RTM_DELLINK || !up || flags&unix.IFF_LOWER_UP == 0)
	}
	return bridge && (m.Header.Type == unix.RTM_DELLINK || !up) ||
		veth && (m.Header.Type == unix.RTM_DELLINK || !up || !master)
}

// knows reports what a device is to us.
func (p *Plane) knows(name string) (bridge, veth bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have != nil && p.have.Bridges[name] != nil, p.veths[name]
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
func (p *Plane) meshRouteGone(m syscall.NetlinkMessage) bool {
	if !p.meshWanted() {
		return false
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_TABLE && len(a.Value) >= 4 {
			return binary.NativeEndian.Uint32(a.Value) == meshTables+p.meshNumber()
		}
	}
	return false
}

// rulesDrift reports whether a message tells of a change of rules that we did
// not make.
func (p *Plane) rulesDrift(m syscall.NetlinkMessage) bool {
	const header = 4 // nfgenmsg
	if m.Header.Type != nftMessages|unix.NFT_MSG_NEWGEN || len(m.Data) < header {
		return false
	}
	for d := m.Data[header:]; len(d) >= 8; {
		size := int(binary.NativeEndian.Uint16(d))
		if binary.NativeEndian.Uint16(d[2:])&0x3fff == nftaGenID && size == 8 {
			return !p.gens.has(binary.BigEndian.Uint32(d[4:]))
		}
		if size < 4 || (size+3)&^3 > len(d) {
			break
		}
		d = d[(size+3)&^3:]
	}
	return true
}
