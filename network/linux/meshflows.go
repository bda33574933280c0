package linux

import (
	"errors"
	"maps"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// meshFlows selects the mesh's connections to tasks that are gone, whose clients
// would otherwise wait in vain: UDP has no end, and TCP one after many minutes.
// A client that goes on sending gets another task, or a reset.
type meshFlows struct {
	mark  uint32
	gone  map[netip.Addr]bool
	ports map[uint16]bool // UDP ports that were published just now
	local map[netip.Addr]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s *meshFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if from, ok := netip.AddrFromSlice(f.Reverse.SrcIP); ok && f.Mark&meshMask == s.mark && s.gone[from.Unmap()] {
		return true
	}
	to, ok := netip.AddrFromSlice(f.Forward.DstIP)
	return ok && f.Forward.Protocol == unix.IPPROTO_UDP && s.ports[f.Forward.DstPort] && s.local[to.Unmap()]
}

// forgetMeshFlows has the kernel forget connections that lead nowhere any more.
// Those to tasks that take no new ones, but are there, are left alone. have is
// what there was before, nil if that is not known.
func (p *Plane) forgetMeshFlows(have, want *meshRules, now *network.Config) {
	s := &meshFlows{mark: want.mark, gone: p.meshGone(want, now), ports: map[uint16]bool{}, local: map[netip.Addr]bool{}}
	if have != nil {
		for k, r := range have.ports {
			if n := want.ports[k]; k.Protocol == network.UDP && (n == nil || n.target != r.target) {
				s.ports[k.Port] = true
			}
		}
		for k := range want.ports {
			if k.Protocol == network.UDP && have.ports[k] == nil {
				s.ports[k.Port] = true
			}
		}
	}
	if len(s.gone)+len(s.ports) == 0 {
		return
	}
	for _, l := range want.hostAddrs {
		for _, a := range l {
			s.local[a] = true
		}
	}
	for a := range s.gone {
		delete(p.mesh.led, a)
	}
	p.forgetting.add(p, s)
}

// forgetter removes connections beside Set: a host may have hundreds of thousands
// to look through. Safe for concurrent use.
type forgetter struct {
	mu      sync.Mutex
	next    *meshFlows // to be forgotten, nil: none
	running bool

	wg sync.WaitGroup
}

func (f *forgetter) add(p *Plane, s *meshFlows) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		f.next = s
	} else {
		maps.Copy(f.next.gone, s.gone)
		maps.Copy(f.next.ports, s.ports)
		f.next.local = s.local
	}
	if !f.running {
		f.running = true
		f.wg.Go(func() { f.run(p) })
	}
}

func (f *forgetter) run(p *Plane) {
	for {
		f.mu.Lock()
		s := f.next
		if f.next = nil; s == nil {
			f.running = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		if err := p.forget(s); err != nil {
			p.log.Warn("network: connections to tasks that are gone can't be forgotten: their clients wait until they give up", "error", err)
		}
	}
}

func (p *Plane) forget(s *meshFlows) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(p.host.Fd()), unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, v6 := range []bool{false, true} {
		concerned := len(s.ports) > 0
		for a := range s.gone {
			concerned = concerned || a.Is6() == v6
		}
		family := netlink.InetFamily(netlink.FAMILY_V4)
		if v6 {
			family = netlink.FAMILY_V6
		}
		if !concerned {
			continue
		}
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, s); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}

// meshGone returns the addresses that connections were led to and that nobody
// has any more.
func (p *Plane) meshGone(want *meshRules, now *network.Config) map[netip.Addr]bool {
	if p.mesh.led == nil {
		p.mesh.led = map[netip.Addr]bool{}
	}
	there := map[netip.Addr]bool{}
	for _, r := range want.ports {
		for _, l := range [][]netip.Addr{r.four, r.six} {
			for _, a := range l {
				there[a], p.mesh.led[a] = true, true
			}
		}
	}
	gone := map[netip.Addr]bool{}
	o := now.Overlays[now.Mesh.Overlay]
	if o == nil || o.Unknown {
		return gone
	}
	for _, peer := range o.Peers {
		there[peer.Address], there[peer.Address6] = true, true
	}
	for _, s := range now.Sandboxes {
		for i := range s.Interfaces {
			for _, a := range s.Interfaces[i].Addresses {
				there[a.Addr()] = true
			}
		}
	}
	for a := range p.mesh.led {
		if !there[a] {
			gone[a] = true
		}
	}
	return gone
}
