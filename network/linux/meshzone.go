package linux

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A client may come to one task by two nodes from one port of its own; each node
// knows only its half. In the task's namespace the two would be one connection.
// So a connection's tracking zone there, in the client's direction, is that of the
// node it comes from, and if two have the same ends the later one's source port is
// changed (by the kernel, as for any translation that finds its tuple taken).

// sources is the chain that has the kernel look for a free port.
const sourcesChain = "sources"

// zonesTable has the rule that sets the zone, in a chain named after the device. It
// is a table of its own, made once: while the rule is away, the next packet
// of a connection begins another one, which gets another port, and is reset.
func zonesTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: "legion-mesh-zones"}
}

// hasZones reports whether the thread's namespace has the table of zones for a
// device.
func hasZones(device string) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	chains, err := c.ListChainsOfTableFamily(zonesTable().Family)
	return slices.ContainsFunc(chains, func(x *nftables.Chain) bool { return x.Table.Name == zonesTable().Name && x.Name == zonesOf(device) }), err
}

// zonesOf is the name of the chain for a device.
func zonesOf(device string) string { return "zones-" + device }

// zones writes the table for a box's device: the rule is "ct original zone set (last
// two bytes of the source's MAC address)", or one for each subnet, in which what is
// the same in all of its addresses is replaced by what only that subnet has. The
// nftables library has no word for "original" in it.
func (t *transaction) zones(b meshBox, fresh bool) {
	x := zonesTable()
	t.fresh(x, fresh)
	chain := zonesOf(b.device)
	t.chain(x, chain, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityRaw, "")
	from, last := iif(expr.CmpOpEq, b.device), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 10, Len: 2}
	all := b.marks()
	if len(all) == 1 {
		t.zone(x, chain, from, []expr.Any{last})
		return
	}
	for i, z := range zonesFor(b.subnets) {
		t.zone(x, chain, from, all[i].in(sourceMAC()), []expr.Any{last, &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 2, Mask: binary.BigEndian.AppendUint16(nil, z.mask), Xor: binary.BigEndian.AppendUint16(nil, z.first),
		}})
	}
}

// zoneRange are the zones of one subnet: first, and what mask leaves of an address.
type zoneRange struct{ first, mask uint16 }

// zonesFor returns zones for the IPv4 subnets, in their order: all different, as long
// as there are no more addresses than zones.
func zonesFor(subnets []netip.Prefix) []zoneRange {
	var four []netip.Prefix
	for _, s := range subnets {
		if s.Addr().Is4() {
			four = append(four, s)
		}
	}
	order := make([]int, len(four))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return four[i].Bits() - four[j].Bits() }) // the largest first: then none begins within itself
	l := make([]zoneRange, len(four))
	next := 0
	for _, i := range order {
		size := 1 << min(16, 32-four[i].Bits())
		l[i] = zoneRange{uint16(next), uint16(size - 1)}
		next += size
	}
	return l
}

// zone writes a rule that has what parts load as a connection's zone in the client's
// direction.
func (t *transaction) zone(x *nftables.Table, chain string, parts ...[]expr.Any) {
	t.ruleWith(x, chain, func() {
		t.text(unix.NFTA_EXPR_NAME, "ct")
		at := t.nest(unix.NFTA_EXPR_DATA | unix.NLA_F_NESTED)
		t.bigEndian(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE)
		t.attr(unix.NFTA_CT_DIRECTION, 0) // IP_CT_DIR_ORIGINAL
		t.bigEndian(unix.NFTA_CT_SREG, 1)
		t.close(at)
	}, parts...)
}
