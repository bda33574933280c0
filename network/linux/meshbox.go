package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
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

	aloneChain = "alone"
)

// nowhere is the next hop that does not exist, of a family.
func nowhere(v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 13: 2, 15: 0x42})
	}
	return netip.AddrFrom4([4]byte{169, 254, 1, 1})
}

// meshBox is what there is to know of a sandbox in the ingress network.
type meshBox struct {
	sandbox, device, hostName string
	addrs                     []netip.Prefix // in the ingress network
	subnets                   []netip.Prefix // of that
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
	return b.sandbox == o.sandbox && b.device == o.device && b.hostName == o.hostName && slices.Equal(b.addrs, o.addrs) && slices.Equal(b.subnets, o.subnets) &&
		slices.Equal(b.answers, o.answers) && b.way4 == o.way4 && b.way6 == o.way6
}

// meshBoxOf tells what a sandbox needs; false if it is not in the overlay, by IPv4.
func (p *Plane) meshBoxOf(s *network.Sandbox, overlay string) (meshBox, bool) {
	b := meshBox{sandbox: s.ID, way4: s.Gateway4.IsValid(), way6: s.Gateway6.IsValid()}
	for i := range s.Interfaces {
		if f := &s.Interfaces[i]; f.Overlay == overlay {
			b.device, b.hostName, b.addrs, b.subnets = f.Name, f.HostName, f.Addresses, f.Subnets()
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

// marks are values that stand for endpoints of a subnet: the first bytes of their
// addresses, as they lie in a packet.
type marks struct{ value, mask uint32 }

// marks are those of the network's IPv4 subnets.
func (b meshBox) marks() []marks {
	var l []marks
	for _, s := range b.subnets {
		if s.Addr().Is4() {
			l = append(l, marks{binary.NativeEndian.Uint32(s.Addr().AsSlice()), binary.NativeEndian.Uint32(net.CIDRMask(s.Bits(), 32))})
		}
	}
	return l
}

// in matches what first loads if it is one of the marks.
func (m marks) in(first expr.Any) []expr.Any { return append(masked(first, m.mask), equals(m.value)) }

// hasWay reports whether there is a default route of a family.
func (b meshBox) hasWay(v6 bool) bool {
	if v6 {
		return b.way6
	}
	return b.way4
}

// alone reports whether there is a family without a way out but that of answers.
func (b meshBox) alone() bool {
	return slices.ContainsFunc(b.addrs, func(a netip.Prefix) bool { return !b.hasWay(a.Addr().Is6()) })
}

// putMeshBox prepares a sandbox that may have been prepared before.
func (p *Plane) putMeshBox(b meshBox) error {
	return p.inSandbox(p.Path(b.sandbox), func() error {
		r, err := openRequests()
		if err != nil {
			return err
		}
		defer r.shut()
		ipv4, err := openIPv4Settings()
		if err != nil {
			return err
		}
		defer ipv4.close()
		if err := b.route(r, ipv4, false); err != nil {
			return err
		}
		zones, err := hasZones(b.device)
		if err != nil {
			return err
		}
		var t transaction
		t.box(b, false, zones)
		if err := p.commit(&t); err != nil {
			return fmt.Errorf("packet filter rules in its namespace (nftables with egress hooks, Linux 5.16 or later): %w", err)
		}
		return nil
	})
}

// route makes what of a box isn't packet filter rules. fresh: there is none of it.
func (b meshBox) route(r *requests, ipv4 ipv4Settings, fresh bool) error {
	// A connection's socket takes up the mark of its first packet: its answers
	// are then routed right at once, not anew one by one.
	if err := ipv4.write("tcp_fwmark_accept", "1"); err != nil {
		return err
	}
	index, err := r.index(b.device)
	if err != nil {
		return fmt.Errorf("interface %s: %w", b.device, err)
	}
	r.looseReverse(b.device, index) // clients have addresses that are not routed there
	// Answers are led to the next hop that does not exist.
	for _, a := range b.addrs {
		gw := nowhere(a.Addr().Is6())
		r.neighbour(index, gw, []byte{0x02, 0x42, 0, 0, 0, 0})
		r.everything(index, boxTable, gw)
		for _, m := range b.marks() {
			r.rule("routing rule for answers", inet(gw), boxTable, boxRuleFirst, m.value, m.mask)
		}
		switch {
		case !b.hasWay(a.Addr().Is6()):
			r.rule("routing rule for who has no other way out", inet(gw), boxTable, boxRuleLast, 0, 0)
		case !fresh:
			r.dropRule("routing rule for who had no other way out", inet(gw), boxTable, boxRuleLast)
		}
	}
	return r.run()
}

// dropMeshBox leaves nothing of it in a sandbox that goes on.
func (p *Plane) dropMeshBox(b meshBox) error {
	return p.inSandbox(p.Path(b.sandbox), func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
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
		var t transaction
		for _, x := range append(boxTables(), zonesTable()) {
			t.drop(x)
		}
		return t.commit()
	})
}

// boxTables are the tables in a sandbox that are written anew as a whole.
func boxTables() []*nftables.Table {
	return []*nftables.Table{
		{Family: nftables.TableFamilyINet, Name: "legion-mesh"},
		{Family: nftables.TableFamilyNetdev, Name: "legion-mesh"},
	}
}

// box writes a sandbox's tables. fresh: it has none; zones: it has that of zones.
func (t *transaction) box(b meshBox, fresh, zones bool) {
	if !zones {
		t.zones(b, fresh)
	}
	tables := boxTables()
	for _, x := range tables {
		t.fresh(x, fresh)
	}
	w := &boxWriter{transaction: t, t: tables[0], b: b}
	w.base(sourcesChain, nftables.ChainTypeNAT, nftables.ChainHookInput, prioritySrcNAT)
	w.note()
	w.target()
	w.answer()
	if b.alone() {
		w.alone()
	}
	w.t = tables[1]
	w.overwrite()
}

type boxWriter struct {
	*transaction
	t *nftables.Table
	b meshBox
}

func (w *boxWriter) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int) string {
	w.chain(w.t, name, kind, hook, priority, "")
	return name
}

func (w *boxWriter) rule(chain string, parts ...[]expr.Any) {
	w.transaction.rule(w.t, chain, parts...)
}

// sourceMAC loads the last four bytes of the source's MAC address.
func sourceMAC() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 8, Len: 4}
}

// note has a connection remember where its last packet came from: a client may
// go on by another node.
func (w *boxWriter) note() {
	c := w.base("note", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -150)
	for _, m := range w.b.marks() {
		w.rule(c, iif(expr.CmpOpEq, w.b.device), original(), m.in(sourceMAC()),
			[]expr.Any{sourceMAC(), &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
				&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}})
	}
}

// target: a datagram is given the address that a socket bound to none will
// answer from, so that the answer is known for one.
func (w *boxWriter) target() {
	c := w.base("target", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityDstNAT)
	w.rule(c, iif(expr.CmpOpNeq, w.b.device), verdict(expr.VerdictReturn))
	w.rule(c, []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_UDP}}},
		verdict(expr.VerdictReturn))
	for _, s := range w.b.subnets {
		w.rule(c, addressIn(true, s), verdict(expr.VerdictReturn))
	}
	for _, own := range w.b.addrs {
		v6 := own.Addr().Is6()
		to := addressIn(false, netip.PrefixFrom(own.Addr(), own.Addr().BitLen()))
		for _, a := range w.b.answers {
			if a.from.Is6() == v6 {
				at, _ := saddrAt(v6)
				w.rule(c, to, inPrefix(at, a.to), []expr.Any{
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
	for _, m := range w.b.marks() {
		w.rule(c, reply(), m.in(mark), []expr.Any{mark, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}})
	}
}

// alone refuses what has no way out but that of answers, and is none.
func (w *boxWriter) alone() {
	c := w.base(aloneChain, nftables.ChainTypeFilter, nftables.ChainHookOutput, 0)
	for _, m := range w.b.marks() {
		w.rule(c, oif(expr.CmpOpEq, w.b.device), m.in(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}), verdict(expr.VerdictAccept))
	}
	for _, s := range w.b.subnets {
		w.rule(c, oif(expr.CmpOpEq, w.b.device), addressIn(false, s), verdict(expr.VerdictAccept))
	}
	for _, local := range []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8")} {
		w.rule(c, oif(expr.CmpOpEq, w.b.device), addressIn(false, local), verdict(expr.VerdictAccept))
	}
	w.rule(c, oif(expr.CmpOpEq, w.b.device), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_NO_ROUTE}})
}

// overwrite writes the address of the node that a packet answers to.
func (w *boxWriter) overwrite() {
	const c = "overwrite"
	w.chain(w.t, c, nftables.ChainTypeFilter, nftables.ChainHookEgress, int(*nftables.ChainPriorityFilter), w.b.device)
	mark := &expr.Meta{Key: expr.MetaKeyMARK, Register: 1}
	for _, m := range w.b.marks() {
		w.rule(c, m.in(mark), []expr.Any{mark,
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 2, Len: 4}})
	}
}
