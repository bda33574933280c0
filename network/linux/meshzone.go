package linux

import (
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

// zones writes the table for a device: the rule is "ct original zone set (last two
// bytes of the source's MAC address)". The nftables library has no word for
// "original" in it.
func (t *transaction) zones(device string, fresh bool) {
	x := zonesTable()
	t.fresh(x, fresh)
	t.chain(x, zonesOf(device), nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityRaw, "")
	t.ruleWith(x, zonesOf(device), func() {
		t.text(unix.NFTA_EXPR_NAME, "ct")
		at := t.nest(unix.NFTA_EXPR_DATA | unix.NLA_F_NESTED)
		t.bigEndian(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE)
		t.attr(unix.NFTA_CT_DIRECTION, 0) // IP_CT_DIR_ORIGINAL
		t.bigEndian(unix.NFTA_CT_SREG, 1)
		t.close(at)
	}, iif(expr.CmpOpEq, device), []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 10, Len: 2}})
}
