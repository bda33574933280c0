package linux

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mnl "github.com/mdlayher/netlink"
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

// zonesMade is a chain of the table of zones that is added last, so that one which
// was left half-made is known.
const zonesMade = "made"

// putZones makes the table of zones, in the thread's namespace, unless it is there.
func putZones(c *nftables.Conn, device string) error {
	t := zonesTable()
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return err
	}
	var made, same bool
	for _, x := range chains {
		made = made || x.Table.Name == t.Name && x.Name == zonesMade
		same = same || x.Table.Name == t.Name && x.Name == zonesOf(device)
	}
	if made && same {
		return nil
	}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	c.AddChain(&nftables.Chain{
		Table: t, Name: zonesOf(device), Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRef(priorityRaw),
	})
	if err := c.Flush(); err != nil {
		return err
	}
	if err := addZoneRule(t, zonesOf(device), device); err != nil {
		return err
	}
	c.AddChain(&nftables.Chain{Table: t, Name: zonesMade})
	return c.Flush()
}

// zonesOf is the name of the chain for a device.
func zonesOf(device string) string { return "zones-" + device }

// addZoneRule appends, in the thread's namespace, the rule "ct original zone set
// (last two bytes of the source's MAC address)" for what comes by a device. The
// nftables library has no word for "original" in it.
func addZoneRule(t *nftables.Table, chain, device string) error {
	family := byte(t.Family)
	var list []mnl.Attribute
	add := func(data []byte) {
		list = append(list, mnl.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data})
	}
	known := append(iif(expr.CmpOpEq, device), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 10, Len: 2})
	for _, e := range known {
		data, err := expr.Marshal(family, e)
		if err != nil {
			return err
		}
		add(data)
	}
	number := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	zone, err := mnl.MarshalAttributes([]mnl.Attribute{
		{Type: unix.NFTA_CT_KEY, Data: number(unix.NFT_CT_ZONE)},
		{Type: unix.NFTA_CT_DIRECTION, Data: []byte{0}}, // IP_CT_DIR_ORIGINAL
		{Type: unix.NFTA_CT_SREG, Data: number(1)},
	})
	if err != nil {
		return err
	}
	set, err := mnl.MarshalAttributes([]mnl.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte("ct\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: zone},
	})
	if err != nil {
		return err
	}
	add(set)
	exprs, err := mnl.MarshalAttributes(list)
	if err != nil {
		return err
	}
	rule, err := mnl.MarshalAttributes([]mnl.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(t.Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: exprs},
	})
	if err != nil {
		return err
	}
	return sendRule(family, rule)
}

// sendRule adds a rule, in a transaction of its own.
func sendRule(family byte, rule []byte) error {
	c, err := mnl.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	header := func(family byte, resource uint16) []byte { // nfgenmsg
		return binary.BigEndian.AppendUint16([]byte{family, 0}, resource)
	}
	edge := header(0, unix.NFNL_SUBSYS_NFTABLES)
	messages, err := c.SendMessages([]mnl.Message{
		{Header: mnl.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: mnl.Request}, Data: edge},
		{
			Header: mnl.Header{Type: nftMessages | unix.NFT_MSG_NEWRULE, Flags: mnl.Request | mnl.Acknowledge | mnl.Create | mnl.Append},
			Data:   append(header(family, 0), rule...),
		},
		{Header: mnl.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: mnl.Request}, Data: edge},
	})
	if err != nil {
		return err
	}
	if _, err := c.Receive(); err != nil { // an acknowledgement, or why not
		return fmt.Errorf("rule %d: %w", messages[1].Header.Sequence, err)
	}
	return nil
}
