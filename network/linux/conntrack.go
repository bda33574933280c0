package linux

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// staleFlows selects flows of UDP to ports of the host. While a client keeps
// sending, such a flow never ends, and leads where its port once led.
type staleFlows struct {
	ports map[uint16]bool
	local map[netip.Addr]bool
	shut  map[netip.AddrPort]bool // were open, at containers' own addresses
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s *staleFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	a, ok := netip.AddrFromSlice(f.Forward.DstIP)
	a = a.Unmap()
	return ok && f.Forward.Protocol == unix.IPPROTO_UDP &&
		(s.ports[f.Forward.DstPort] && s.local[a] || s.shut[netip.AddrPortFrom(a, f.Forward.DstPort)])
}

// forgetFlows has the kernel forget flows to UDP ports that lead elsewhere now, by another
// way, or are no longer open.
func (p *Plane) forgetFlows(f nftables.TableFamily, have, want *ruleset) error {
	if have == nil {
		have = &ruleset{}
	}
	if want == nil {
		want = &ruleset{}
	}
	s := &staleFlows{ports: map[uint16]bool{}, local: map[netip.Addr]bool{}, shut: map[netip.AddrPort]bool{}}
	for _, m := range []map[network.PortKey]netip.AddrPort{have.ports, want.ports} {
		for k := range m {
			if k.Protocol == network.UDP && (have.ports[k] != want.ports[k] || have.framed != want.framed) {
				s.ports[k.Host.Port()] = true
			}
		}
	}
	for k := range have.open {
		if k.Protocol == network.UDP && !want.open[k] {
			s.shut[k.Host] = true
		}
	}
	if len(s.ports)+len(s.shut) == 0 {
		return nil
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(p.host.Fd()), unix.NETLINK_NETFILTER, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if f == nftables.TableFamilyIPv6 {
		family = netlink.FAMILY_V6
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, int(family)) })
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		s.local[prefix(a.IPNet).Addr()] = true
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, s); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("forget flows to ports that were published anew: %w", err)
	}
	return nil
}
