package linux

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// tableBuilder writes a family's table. What it writes, in nft's words, is in
// design/network.md.
type tableBuilder struct {
	c      *filterConn
	family nftables.TableFamily
	t      *nftables.Table

	byPort, byAddr *nftables.Set
	open           *nftables.Set
	rules          map[string]int // written, by chain
}

func (b *tableBuilder) v6() bool { return b.family == nftables.TableFamilyIPv6 }

func (b *tableBuilder) addrType() nftables.SetDatatype {
	if b.v6() {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// declareMaps describes the maps from ports to targets, and the set of open ports.
func (b *tableBuilder) declareMaps() error {
	port, err := nftables.ConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return err
	}
	addrPort, err := nftables.ConcatSetType(b.addrType(), nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return err
	}
	target, err := nftables.ConcatSetType(b.addrType(), nftables.TypeInetService)
	if err != nil {
		return err
	}
	b.byPort = &nftables.Set{Table: b.t, Name: anyMap, IsMap: true, Concatenation: true, KeyType: port, DataType: target}
	b.byAddr = &nftables.Set{Table: b.t, Name: addrMap, IsMap: true, Concatenation: true, KeyType: addrPort, DataType: target}
	b.open = &nftables.Set{Table: b.t, Name: openSet, Concatenation: true, KeyType: addrPort}
	return nil
}

func (b *tableBuilder) mapFor(k network.PortKey) *nftables.Set {
	if k.Host.Addr().IsUnspecified() {
		return b.byPort
	}
	return b.byAddr
}

// element is an entry of mapFor(k).
func (b *tableBuilder) element(k network.PortKey, target netip.AddrPort) nftables.SetElement {
	val := binary.BigEndian.AppendUint16(target.Addr().AsSlice(), target.Port())
	return nftables.SetElement{Key: portKey(k), Val: append(val, 0, 0)}
}

// portKey is how sets and maps name a port, by its address if it has one.
func portKey(k network.PortKey) []byte {
	var key []byte
	if !k.Host.Addr().IsUnspecified() {
		key = k.Host.Addr().AsSlice()
	}
	key = append(key, protocolNumber(k.Protocol), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(key, k.Host.Port()), 0, 0)
}

func protocolNumber(p network.Protocol) byte {
	switch p {
	case network.UDP:
		return unix.IPPROTO_UDP
	case network.SCTP:
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// fill writes all of a table.
func (b *tableBuilder) fill(r *ruleset) error {
	if err := b.declareMaps(); err != nil {
		return err
	}
	elements := map[*nftables.Set][]nftables.SetElement{b.byPort: nil, b.byAddr: nil}
	for k, target := range r.ports {
		elements[b.mapFor(k)] = append(elements[b.mapFor(k)], b.element(k, target))
	}
	for _, s := range []*nftables.Set{b.byPort, b.byAddr} {
		if err := b.c.AddSet(s, elements[s]); err != nil {
			return err
		}
	}
	var open []nftables.SetElement
	for k := range r.open {
		open = append(open, nftables.SetElement{Key: portKey(k)})
	}
	if err := b.c.AddSet(b.open, open); err != nil {
		return err
	}
	b.raw()
	in := b.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityDstNAT)
	b.leaveToRelays(in, r)
	b.translate(in)
	b.translate(b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, priorityDstNAT))
	b.forward(r)
	b.masquerade(r)
	return nil
}

func (b *tableBuilder) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{
		Table: b.t, Name: name, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)),
	})
}

func (b *tableBuilder) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	if b.rules == nil {
		b.rules = map[string]int{}
	}
	b.rules[c.Name]++
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: c, Exprs: all})
}

// raw drops what pretends to come to the host's loopback from outside: it could
// otherwise reach ports that are published there, and route_localnet lets it in.
func (b *tableBuilder) raw() {
	c := b.chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityRaw)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if b.v6() {
		loopback = netip.MustParsePrefix("::1/128")
	}
	b.rule(c, iif(expr.CmpOpNeq, "lo"), b.daddr(loopback), verdict(expr.VerdictDrop))
}

// translate leads published ports to their targets: those on one address first.
func (b *tableBuilder) translate(c *nftables.Chain) {
	if b.v6() {
		// What comes from ::1 can't leave by another device: the sockets relay it.
		b.rule(c, b.daddr(netip.MustParsePrefix("::1/128")), verdict(expr.VerdictReturn))
	}
	local := []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
	key, size := uint32(reg32), b.addrRegisters()
	nat := func(m *nftables.Set) []expr.Any {
		return []expr.Any{
			&expr.Lookup{SourceRegister: key, DestRegister: key, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(b.family), RegAddrMin: key, RegProtoMin: key + size},
		}
	}
	b.rule(c, local, b.loadAddrPort(), nat(b.byAddr))
	b.rule(c, local, loadPort(key), nat(b.byPort))
}

// addrRegisters is how many registers of 4 bytes an address takes.
func (b *tableBuilder) addrRegisters() uint32 {
	if b.v6() {
		return 4
	}
	return 1
}

// loadPort loads protocol and destination port in two registers.
func loadPort(at uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: at},
		&expr.Payload{DestRegister: at + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// loadAddrPort loads destination address, protocol and port in registers from reg32.
func (b *tableBuilder) loadAddrPort() []expr.Any {
	n := b.addrRegisters()
	address := &expr.Payload{DestRegister: reg32, Base: expr.PayloadBaseNetworkHeader, Offset: b.daddrOffset(), Len: 4 * n}
	return append([]expr.Any{address}, loadPort(reg32+n)...)
}

// forward says what may pass between bridges and the world: answers, what was
// published, what stays in a network, and what leaves one. It comes before
// anybody else's verdict, who may still refuse.
func (b *tableBuilder) forward(r *ruleset) {
	c := b.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, priorityForward)
	b.rule(c, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	for _, br := range r.bridges {
		b.rule(c, iif(expr.CmpOpEq, br.Device), oif(expr.CmpOpEq, br.Device), verdict(expr.VerdictAccept))
		if br.Internal {
			b.rule(c, iif(expr.CmpOpEq, br.Device), verdict(expr.VerdictDrop))
		}
	}
	for _, br := range r.bridges {
		if !br.Internal {
			b.rule(c, oif(expr.CmpOpEq, br.Device), ctDNAT(), verdict(expr.VerdictAccept))
			b.direct(c, br, r)
		}
		b.rule(c, oif(expr.CmpOpEq, br.Device), verdict(expr.VerdictDrop))
	}
}

// masquerade gives what leaves a network the host's address, and what comes
// back to it by a published port the bridge's, so that answers find their way.
func (b *tableBuilder) masquerade(r *ruleset) {
	c := b.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySrcNAT)
	masq := []expr.Any{&expr.Masq{}}
	for _, br := range r.bridges {
		for _, a := range br.Subnets(b.v6()) {
			if br.Masquerade && !br.Internal && br.Mode(b.v6()) != network.GatewayRouted {
				b.rule(c, b.saddr(a), oif(expr.CmpOpNeq, br.Device), b.source(br))
			}
			b.rule(c, b.saddr(a), oif(expr.CmpOpEq, br.Device), ctDNAT(), masq)
		}
		if !b.v6() {
			b.rule(c, b.saddr(netip.MustParsePrefix("127.0.0.0/8")), oif(expr.CmpOpEq, br.Device), masq)
		}
	}
}
