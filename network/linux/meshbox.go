package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// What the namespace of a task in the ingress network has, so that its answers go
// to the node that the client came to. Nothing in it depends on which nodes there
// are: an endpoint's MAC address ends in its address (network.Peer.MAC), so those
// four bytes of the source are the connection's mark, packets with such a mark
// are routed to a next hop that does not exist, and as they leave the last four
// bytes of its MAC address are overwritten by the mark.

const (
	// boxTable is the routing table in a sandbox for answers.
	boxTable = meshTables
	// Preferences of routing rules: answers first; and, for who has no other way
	// out, everything, so that a server without a default route can answer.
	boxRuleFirst, boxRuleLast = 64, 33000
)

// nowhere is the next hop that does not exist, of a family.
func nowhere(v6 bool) net.IP {
	if v6 {
		return net.ParseIP("fe80::2:42")
	}
	return net.IPv4(169, 254, 1, 1).To4()
}

// meshBox is what there is to know of a sandbox in the ingress network.
type meshBox struct {
	sandbox, device, hostName string
	addrs                     []netip.Prefix // in the ingress network
	// answers are the addresses that a socket bound to none answers from: by
	// where the client is, the first that contains it.
	answers []answer
	// way4 and way6: it has a default route.
	way4, way6 bool
}

type answer struct {
	to   netip.Prefix
	from netip.Addr
}

func (b meshBox) equal(o meshBox) bool {
	return b.sandbox == o.sandbox && b.device == o.device && b.hostName == o.hostName && slices.Equal(b.addrs, o.addrs) &&
		slices.Equal(b.answers, o.answers) && b.way4 == o.way4 && b.way6 == o.way6
}

// meshBoxOf tells what a sandbox needs; false if it is not in the overlay, by IPv4.
func (p *Plane) meshBoxOf(s *network.Sandbox, overlay string) (meshBox, bool) {
	b := meshBox{sandbox: s.ID, way4: s.Gateway4.IsValid(), way6: s.Gateway6.IsValid()}
	for i := range s.Interfaces {
		if f := &s.Interfaces[i]; f.Overlay == overlay {
			b.device, b.hostName, b.addrs = f.Name, f.HostName, f.Addresses
		}
	}
	if b.device == "" {
		return b, false
	}
	var rest []answer
	for i := range s.Interfaces {
		f := &s.Interfaces[i]
		if f.Overlay == overlay {
			continue
		}
		for _, a := range f.Addresses {
			b.answers = append(b.answers, answer{a.Masked(), a.Addr()})
			for _, g := range []netip.Addr{s.Gateway4, s.Gateway6} {
				if g.IsValid() && a.Masked().Contains(g) {
					rest = append(rest, answer{netip.PrefixFrom(g, 0).Masked(), a.Addr()})
				}
			}
		}
	}
	slices.SortStableFunc(b.answers, func(x, y answer) int { return y.to.Bits() - x.to.Bits() })
	b.answers = append(b.answers, rest...)
	return b, slices.ContainsFunc(b.addrs, func(a netip.Prefix) bool { return a.Addr().Is4() })
}

// marks are the values that stand for endpoints of the network: the first bytes
// of their addresses, as they lie in a packet.
func (b meshBox) marks() (value, mask uint32) {
	for _, a := range b.addrs {
		if a.Addr().Is4() {
			return binary.NativeEndian.Uint32(a.Masked().Addr().AsSlice()), binary.NativeEndian.Uint32(net.CIDRMask(a.Bits(), 32))
		}
	}
	return 0, 0
}

// inBox runs f on a thread in the sandbox's namespace.
func (p *Plane) inBox(b meshBox, f func(h *netlink.Handle) error) error {
	return p.onThread(func() error {
		ns, err := os.Open(p.Path(b.sandbox))
		if err != nil {
			return err
		}
		defer ns.Close() //nolint:errcheck // nothing was written
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter its namespace: %w", err)
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}

func (p *Plane) putMeshBox(b meshBox) error {
	return p.inBox(b, func(h *netlink.Handle) error {
		l, err := h.LinkByName(b.device)
		if err != nil {
			return fmt.Errorf("interface %s: %w", b.device, err)
		}
		// Clients have addresses that are not routed there.
		if err := writeSysctl("/proc/sys/net/ipv4/conf/"+b.device+"/rp_filter", "2"); err != nil {
			return err
		}
		// A connection's socket takes up the mark of its first packet: its answers
		// are then routed right at once, not anew one by one.
		if err := writeSysctl("/proc/sys/net/ipv4/tcp_fwmark_accept", "1"); err != nil {
			return err
		}
		if err := p.boxRoutes(h, l, b); err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		if err := putZones(c, b.device); err != nil {
			return fmt.Errorf("packet filter rule for tracking zones in its namespace: %w", err)
		}
		if err := writeBox(c, b); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("packet filter rules in its namespace (nftables with egress hooks, Linux 5.16 or later): %w", err)
		}
		return nil
	})
}

// dropMeshBox leaves nothing of it in a sandbox that goes on.
func (p *Plane) dropMeshBox(b meshBox) error {
	return p.inBox(b, func(h *netlink.Handle) error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := rulesTo(h, family, boxTable)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if err := h.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
					return err
				}
			}
		}
		if err := writeSysctl("/proc/sys/net/ipv4/tcp_fwmark_accept", "0"); err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		for _, t := range append(boxTables(), zonesTable()) {
			c.AddTable(t)
			c.DelTable(t)
		}
		return c.Flush()
	})
}

// boxRoutes leads answers to the next hop that does not exist.
func (p *Plane) boxRoutes(h *netlink.Handle, l netlink.Link, b meshBox) error {
	value, mask := b.marks()
	for _, a := range b.addrs {
		family, gw, all := netlink.FAMILY_V4, nowhere(false), ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
		if a.Addr().Is6() {
			family, gw, all = netlink.FAMILY_V6, nowhere(true), ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		}
		if err := h.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: gw, HardwareAddr: net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}}); err != nil {
			return fmt.Errorf("neighbour %s: %w", gw, err)
		}
		if err := h.RouteReplace(&netlink.Route{
			LinkIndex: l.Attrs().Index, Dst: all, Gw: gw, Table: boxTable, Flags: int(netlink.FLAG_ONLINK),
		}); err != nil {
			return fmt.Errorf("route for answers in table %d: %w", boxTable, err)
		}
		first, last := netlink.NewRule(), netlink.NewRule()
		first.Family, first.Table, first.Priority, first.Mark, first.Mask = family, boxTable, boxRuleFirst, value, &mask
		last.Family, last.Table, last.Priority = family, boxTable, boxRuleLast
		for _, r := range []*netlink.Rule{first, last} {
			if err := h.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("routing rule %d: %w", r.Priority, err)
			}
		}
	}
	return nil
}

// boxTables are the tables in a sandbox that are written anew as a whole.
func boxTables() []*nftables.Table {
	return []*nftables.Table{
		{Family: nftables.TableFamilyINet, Name: "legion-mesh"},
		{Family: nftables.TableFamilyNetdev, Name: "legion-mesh"},
	}
}

// writeBox writes a sandbox's tables.
func writeBox(c *nftables.Conn, b meshBox) error {
	tables := boxTables()
	for _, t := range tables {
		c.AddTable(t) // so that there is one to delete
		c.DelTable(t)
		c.AddTable(t)
	}
	value, mask := b.marks()
	w := &boxWriter{c: c, t: tables[0], b: b, value: value, mask: mask}
	w.base(sourcesChain, nftables.ChainTypeNAT, nftables.ChainHookInput, prioritySrcNAT)
	w.note()
	w.target()
	w.answer()
	w.alone()
	w.t = tables[1]
	w.overwrite()
	return nil
}

type boxWriter struct {
	c           *nftables.Conn
	t           *nftables.Table
	b           meshBox
	value, mask uint32
}

func (w *boxWriter) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int) *nftables.Chain {
	return w.c.AddChain(&nftables.Chain{
		Table: w.t, Name: name, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)),
	})
}

func (w *boxWriter) rule(c *nftables.Chain, parts ...[]expr.Any) {
	w.c.AddRule(&nftables.Rule{Table: w.t, Chain: c, Exprs: slices.Concat(parts...)})
}

// sourceMAC loads the last four bytes of the source's MAC address.
func sourceMAC() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 8, Len: 4}
}

// note has a connection remember where its last packet came from: a client may
// go on by another node.
func (w *boxWriter) note() {
	c := w.base("note", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -150)
	w.rule(c, iif(expr.CmpOpEq, w.b.device), original(), masked(sourceMAC(), w.mask), []expr.Any{equals(w.value)},
		[]expr.Any{sourceMAC(), &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}})
}

// target: a datagram is given the address that a socket bound to none will
// answer from, so that the answer is known for one.
func (w *boxWriter) target() {
	c := w.base("target", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityDstNAT)
	in, udp := iif(expr.CmpOpEq, w.b.device), l4proto(unix.IPPROTO_UDP)
	for _, own := range w.b.addrs {
		v6 := own.Addr().Is6()
		to := addressIn(false, netip.PrefixFrom(own.Addr(), own.Addr().BitLen()))
		w.rule(c, in, addressIn(true, own.Masked()), verdict(expr.VerdictReturn))
		for _, a := range w.b.answers {
			if a.from.Is6() == v6 {
				w.rule(c, in, udp, to, addressIn(true, a.to), []expr.Any{
					&expr.Immediate{Register: reg32, Data: a.from.AsSlice()},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: natFamily(v6), RegAddrMin: reg32},
				})
			}
		}
	}
}

// answer marks packets that answer.
func (w *boxWriter) answer() {
	c := w.base("answer", nftables.ChainTypeRoute, nftables.ChainHookOutput, -150)
	mark := &expr.Ct{Key: expr.CtKeyMARK, Register: 1}
	w.rule(c, reply(), masked(mark, w.mask), []expr.Any{equals(w.value), mark, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}})
}

// alone refuses what has no way out but that of answers, and is none.
func (w *boxWriter) alone() {
	c := w.base("alone", nftables.ChainTypeFilter, nftables.ChainHookOutput, 0)
	w.rule(c, oif(expr.CmpOpEq, w.b.device), masked(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, w.mask), []expr.Any{equals(w.value)},
		verdict(expr.VerdictAccept))
	for _, a := range w.b.addrs {
		w.rule(c, oif(expr.CmpOpEq, w.b.device), addressIn(false, a.Masked()), verdict(expr.VerdictAccept))
	}
	for _, local := range []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8")} {
		w.rule(c, oif(expr.CmpOpEq, w.b.device), addressIn(false, local), verdict(expr.VerdictAccept))
	}
	w.rule(c, oif(expr.CmpOpEq, w.b.device), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_NO_ROUTE}})
}

// overwrite writes the address of the node that a packet answers to.
func (w *boxWriter) overwrite() {
	c := w.c.AddChain(&nftables.Chain{
		Table: w.t, Name: "overwrite", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookEgress,
		Priority: nftables.ChainPriorityFilter, Device: w.b.device,
	})
	mark := &expr.Meta{Key: expr.MetaKeyMARK, Register: 1}
	w.rule(c, masked(mark, w.mask), []expr.Any{equals(w.value), mark,
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 2, Len: 4}})
}
