package linux

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// overlayWatch hears of changes in an overlay's namespace, and knows which of them
// should not be.
type overlayWatch struct {
	f  *os.File
	ns unix.Stat_t // of the namespace

	mu     sync.Mutex
	tunnel string                // device; empty: there is to be none
	peers  map[string]netip.Addr // nodes by their endpoints' MAC and IP addresses
}

// watchOverlay has changes in an overlay's namespace noticed, which the thread is
// in. Without it they are noticed once a minute.
func (p *Plane) watchOverlay(id string) error {
	var ns unix.Stat_t
	if err := unix.Stat(p.overlayPath(id), &ns); err != nil {
		return err
	}
	p.mu.Lock()
	w := p.watches[id]
	p.mu.Unlock()
	if w != nil && w.ns.Dev == ns.Dev && w.ns.Ino == ns.Ino {
		return nil
	}
	f, err := subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_NEIGH)
	if err != nil {
		return err
	}
	p.unwatchOverlay(id)
	w = &overlayWatch{f: f, ns: ns}
	p.mu.Lock()
	p.watches[id] = w
	p.mu.Unlock()
	p.watching.Go(func() {
		drift := func(m syscall.NetlinkMessage) bool { return p.overlayDrift(w, m) }
		_ = receive(f, p.alarm, drift) // until it is closed
	})
	return nil
}

func (p *Plane) unwatchOverlay(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.watches[id]; w != nil {
		_ = w.f.Close()
		delete(p.watches, id)
	}
}

func (p *Plane) closeWatches() {
	for _, id := range p.watched() {
		p.unwatchOverlay(id)
	}
	p.watching.Wait()
}

func (p *Plane) watched() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.watches))
}

// alarm has Watch say that something changed.
func (p *Plane) alarm() {
	p.stale.Store(true)
	select {
	case p.alarms <- struct{}{}:
	default:
	}
}

// expectTunnel says what an overlay's tunnel is to have, before what it is not to
// have is removed.
func (p *Plane) expectTunnel(id, device string, peers []network.Peer) {
	p.mu.Lock()
	w := p.watches[id]
	p.mu.Unlock()
	if w == nil {
		return
	}
	m := make(map[string]netip.Addr, len(peers))
	for _, peer := range peers {
		m[string(peer.MAC())] = peer.Node
		m[string(peer.Address.AsSlice())], m[string(peer.Address6.AsSlice())] = peer.Node, peer.Node
	}
	delete(m, "") // of a family that a peer doesn't have
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tunnel, w.peers = device, m
}

// overlayDrift reports whether a message tells of something in an overlay that is
// not as it should be.
func (p *Plane) overlayDrift(w *overlayWatch, m syscall.NetlinkMessage) bool {
	const scopeAt = 3 // in ifaddrmsg
	switch m.Header.Type {
	case unix.RTM_DELADDR: // ends of pairs have link-local ones of the kernel's
		return len(m.Data) < unix.SizeofIfAddrmsg || m.Data[scopeAt] != unix.RT_SCOPE_LINK
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return w.neighbourDrift(m)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
	default:
		return false
	}
	name, up, master, ok := linkMessage(m)
	if !ok {
		return false
	}
	w.mu.Lock()
	tunnel := w.tunnel != "" && name == w.tunnel
	w.mu.Unlock()
	gone := m.Header.Type == unix.RTM_DELLINK || !up
	_, veth := p.knows(name)
	veth = veth || name == meshPort && p.meshWanted()
	return name == overlayBridge && gone || (veth || tunnel) && (gone || !master)
}

// neighbourDrift reports whether a peer's entry is gone, or leads elsewhere.
func (w *overlayWatch) neighbourDrift(m syscall.NetlinkMessage) bool {
	const flagsAt, size = 10, 12 // in ndmsg
	if len(m.Data) < size {
		return true
	}
	var mac, dst []byte
	for d := m.Data[size:]; len(d) >= unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(d))
		if n < unix.SizeofRtAttr || n > len(d) {
			break
		}
		switch binary.NativeEndian.Uint16(d[2:]) {
		case unix.NDA_LLADDR:
			mac = d[unix.SizeofRtAttr:n]
		case unix.NDA_DST:
			dst = d[unix.SizeofRtAttr:n]
		}
		d = d[min((n+3)&^3, len(d)):]
	}
	key := mac
	if m.Data[0] != unix.AF_BRIDGE {
		key = dst // one that is on its way out has no other
	}
	w.mu.Lock()
	node, ours := w.peers[string(key)]
	w.mu.Unlock()
	if !ours || m.Header.Type == unix.RTM_DELNEIGH {
		return ours
	}
	to, ok := netip.AddrFromSlice(dst)
	self := m.Data[0] == unix.AF_BRIDGE && m.Data[flagsAt]&unix.NTF_SELF != 0
	return self && ok && to.Unmap() != node
}

// linkMessage reads a message about a device.
func linkMessage(m syscall.NetlinkMessage) (name string, up, master, ok bool) {
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return "", false, false, false
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return "", false, false, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			name = strings.TrimRight(string(a.Value), "\x00")
		case unix.IFLA_MASTER:
			master = true
		}
	}
	return name, binary.NativeEndian.Uint32(m.Data[8:])&uint32(net.FlagUp) != 0, master, true
}
