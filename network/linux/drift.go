package linux

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// overlayWatch hears of changes in an overlay's namespace, and knows which of them
// should not be.
type overlayWatch struct {
	f    *os.File
	ns   unix.Stat_t // of the namespace
	lent lender      // sockets in it

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
	w := p.watchOf(id)
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
		drift := func(kind uint16, d []byte) bool { return p.overlayDrift(w, kind, d) }
		_ = receive(f, p.alarm, drift) // until it is closed
	})
	return nil
}

func (p *Plane) unwatchOverlay(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.watches[id]; w != nil {
		_ = w.f.Close()
		w.lent.shut()
		delete(p.watches, id)
	}
}

// borrow lends a socket in an overlay's namespace, or in the host's if the id is
// empty; give it back by its giveBack. The thread may be in any namespace.
func (p *Plane) borrow(overlay string) (*requests, error) {
	if overlay == "" {
		return p.lent.borrow(func() (r *requests, err error) {
			err = p.onThread(func() (err error) {
				if err = unix.Setns(int(p.host.Fd()), unix.CLONE_NEWNET); err == nil {
					r, err = openRequests()
				}
				return err
			})
			return r, err
		})
	}
	path := p.overlayPath(overlay)
	open := func() (r *requests, err error) {
		err = p.inSandbox(path, func() (err error) { r, err = openRequests(); return err })
		return r, err
	}
	if w := p.watchOf(overlay); w != nil && w.ns.Ino == inode(path) {
		return w.lent.borrow(open)
	}
	return open()
}

func (p *Plane) watchOf(overlay string) *overlayWatch {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watches[overlay]
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
	w := p.watchOf(id)
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
func (p *Plane) overlayDrift(w *overlayWatch, kind uint16, d []byte) bool {
	switch kind {
	case unix.RTM_DELADDR:
		return !linkScope(d) // ends of pairs have such addresses of the kernel's
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return w.neighbourDrift(kind, d)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
	default:
		return false
	}
	l, ok := readLink(d)
	if !ok {
		return false
	}
	w.mu.Lock()
	tunnel := w.tunnel != "" && l.name == w.tunnel
	w.mu.Unlock()
	gone := kind == unix.RTM_DELLINK || !l.up
	_, veth := p.knows(l.name)
	veth = veth || l.name == meshPort && p.meshWanted()
	return l.name == overlayBridge && gone || (veth || tunnel) && (gone || !l.master)
}

// linkScope reports whether a message is of an address that counts on its link only.
func linkScope(d []byte) bool {
	const at = 3 // in ifaddrmsg
	return len(d) >= unix.SizeofIfAddrmsg && d[at] == unix.RT_SCOPE_LINK
}

// neighbourDrift reports whether a peer's entry is gone, or leads elsewhere.
func (w *overlayWatch) neighbourDrift(kind uint16, d []byte) bool {
	if len(d) < unix.SizeofNdMsg {
		return true
	}
	const flagsAt = 10
	var mac, dst []byte
	for attr, v := range attributes(d[unix.SizeofNdMsg:]) {
		switch attr {
		case unix.NDA_LLADDR:
			mac = v
		case unix.NDA_DST:
			dst = v
		}
	}
	key := mac
	if d[0] != unix.AF_BRIDGE {
		key = dst // one that is on its way out has no other
	}
	w.mu.Lock()
	node, ours := w.peers[string(key)]
	w.mu.Unlock()
	if !ours || kind == unix.RTM_DELNEIGH {
		return ours
	}
	to, ok := netip.AddrFromSlice(dst)
	self := d[0] == unix.AF_BRIDGE && d[flagsAt]&unix.NTF_SELF != 0
	return self && ok && to.Unmap() != node
}

// linkState is what a message says of a device.
type linkState struct {
	name                string
	up, carries, master bool
}

func readLink(d []byte) (l linkState, ok bool) {
	if len(d) < unix.SizeofIfInfomsg || d[0] != unix.AF_UNSPEC {
		return l, false
	}
	for attr, v := range attributes(d[unix.SizeofIfInfomsg:]) {
		switch attr {
		case unix.IFLA_IFNAME:
			l.name = strings.TrimRight(string(v), "\x00")
		case unix.IFLA_MASTER:
			l.master = true
		}
	}
	flags := binary.NativeEndian.Uint32(d[8:])
	l.up, l.carries = flags&unix.IFF_UP != 0, flags&unix.IFF_LOWER_UP != 0
	return l, true
}
