package linux

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// Priorities of the mesh's chains. Marks come before all who judge a packet by
// the route that it would take, and go before it is routed.
const (
	priorityMark   = -310
	priorityUnmark = -90
	priorityInput  = -10
	// prioritySource comes before everybody's masquerading.
	prioritySource = 99
)

// elementsAtOnce bounds a message: its list of elements is at most 64 KB.
const elementsAtOnce = 500

// rejectChain refuses what comes to a port without backends.
const rejectChain = "refuse" // reject is a word of nft

// meshBuilder writes the mesh's table. What it writes, in nft's words, is in
// design/network.md.
type meshBuilder struct {
	c     *filterConn
	t     *nftables.Table
	w     *meshRules
	rules map[string]int // written, by chain
	maps  map[string]int // elements written, by map
}

func (p *Plane) meshTable() *nftables.Table {
	name := "legion-mesh"
	if p.owner != defaultOwner {
		name += "_" + p.owner
	}
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
}

func (p *Plane) newMeshBuilder(c *filterConn, w *meshRules) *meshBuilder {
	return &meshBuilder{c: c, t: p.meshTable(), w: w, rules: map[string]int{}, maps: map[string]int{}}
}

func (b *meshBuilder) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int) *nftables.Chain {
	b.rules[name] += 0
	return b.c.AddChain(&nftables.Chain{
		Table: b.t, Name: name, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)),
	})
}

func (b *meshBuilder) chain(name string) *nftables.Chain {
	b.rules[name] += 0
	return b.c.AddChain(&nftables.Chain{Table: b.t, Name: name})
}

func (b *meshBuilder) rule(c *nftables.Chain, parts ...[]expr.Any) {
	b.rules[c.Name]++
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: c, Exprs: slices.Concat(parts...)})
}

// verdictMap describes a map from protocol and port to a verdict.
func (b *meshBuilder) verdictMap(name string) (*nftables.Set, error) {
	key, err := nftables.ConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	if err != nil {
		return nil, err
	}
	return &nftables.Set{Table: b.t, Name: name, IsMap: true, Concatenation: true, KeyType: key, DataType: nftables.TypeVerdict}, nil
}

// Maps from ports to what is done: translated, or refused.
func portsMap(v6 bool) string   { return "ports-" + familyDigit(v6) }
func refusedMap(v6 bool) string { return "refused-" + familyDigit(v6) }

// fill writes all of the table.
func (b *meshBuilder) fill() error {
	for _, v6 := range []bool{false, true} {
		for _, name := range []string{portsMap(v6), refusedMap(v6)} {
			m, err := b.verdictMap(name)
			if err != nil {
				return err
			}
			if err := b.c.AddSet(m, nil); err != nil {
				return err
			}
			b.maps[name] = 0
		}
	}
	b.reject()
	b.marks()
	b.translate("prerouting", nftables.ChainHookPrerouting)
	b.translate("output", nftables.ChainHookOutput)
	b.pass()
	b.sources()
	for _, k := range slices.SortedFunc(maps.Keys(b.w.ports), compareMeshKeys) {
		if err := b.putPort(k, b.w.ports[k]); err != nil {
			return err
		}
	}
	return nil
}

// reject is for ports without backends.
func (b *meshBuilder) reject() {
	c := b.chain(rejectChain)
	b.rule(c, l4proto(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	b.rule(c, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})
}

// marks: packets of the mesh's connections on their way to a task are marked, so
// that they are routed there. Those on their way back are marked only while
// others ask by which way such a packet should have come.
func (b *meshBuilder) marks() {
	mine := slices.Concat(b.connMark(), b.setMark(expr.MetaKeyMARK, b.w.mark))
	raw := b.base("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityMark)
	b.rule(raw, iif(expr.CmpOpEq, b.w.device), b.setMark(expr.MetaKeyMARK, b.w.mark))
	for _, p := range []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")} {
		b.rule(raw, iif(expr.CmpOpNeq, "lo"), b.address(false, p), verdict(expr.VerdictDrop))
	}
	late := b.base("late", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityUnmark)
	b.rule(late, iif(expr.CmpOpEq, b.w.device), b.setMark(expr.MetaKeyMARK, 0), verdict(expr.VerdictReturn))
	b.rule(late, original(), mine)
	out := b.base("reroute", nftables.ChainTypeRoute, nftables.ChainHookOutput, -150)
	b.rule(out, original(), mine)
}

// translate chooses a backend for what comes to a published port.
func (b *meshBuilder) translate(name string, hook *nftables.ChainHook) {
	c := b.base(name, nftables.ChainTypeNAT, hook, priorityDstNAT)
	if hook == nftables.ChainHookPrerouting {
		b.rule(c, iif(expr.CmpOpEq, b.w.device), verdict(expr.VerdictReturn))
	}
	// What comes from ::1 can't leave by another device: the sockets relay it.
	b.rule(c, b.address(false, netip.MustParsePrefix("::1/128")), verdict(expr.VerdictReturn))
	b.lookup(c, portsMap)
}

func (b *meshBuilder) lookup(c *nftables.Chain, name func(v6 bool) string) {
	for _, v6 := range []bool{false, true} {
		b.rule(c, nfproto(v6), local(), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32},
			&expr.Payload{DestRegister: reg32 + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: reg32, IsDestRegSet: true, SetName: name(v6)},
		})
	}
}

// pass says what may go between the host and the ingress network: what was
// published, and the answers to it.
func (b *meshBuilder) pass() {
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	in, out := iif(expr.CmpOpEq, b.w.device), oif(expr.CmpOpEq, b.w.device)
	forward := b.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, priorityForward)
	b.rule(forward, out, b.connMark(), original(), accept)
	b.rule(forward, out, drop)
	b.rule(forward, in, b.connMark(), reply(), accept)
	b.rule(forward, in, drop)
	input := b.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, priorityInput)
	b.rule(input, in, b.connMark(), reply(), accept)
	b.rule(input, in, neighbours(), accept)
	b.rule(input, in, drop)
	b.lookup(input, refusedMap)
	output := b.base("send", nftables.ChainTypeFilter, nftables.ChainHookOutput, priorityInput)
	b.rule(output, out, b.connMark(), original(), accept)
	b.rule(output, out, neighbours(), accept)
	b.rule(output, out, drop)
}

// sources replaces the addresses of clients that mean nothing elsewhere.
func (b *meshBuilder) sources() {
	c := b.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySource)
	out := oif(expr.CmpOpEq, b.w.device)
	for _, p := range append([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, b.w.private...) {
		own := b.w.addr4
		if p.Addr().Is6() {
			own = b.w.addr6
		}
		if own.IsValid() {
			b.rule(c, out, b.address(true, p), []expr.Any{
				&expr.Immediate{Register: reg32, Data: own.AsSlice()},
				&expr.NAT{Type: expr.NATTypeSourceNAT, Family: natFamily(p.Addr().Is6()), RegAddrMin: reg32},
			})
		}
	}
}

// putPort writes a port's chains and its entries in the maps.
func (b *meshBuilder) putPort(k network.MeshKey, w *meshRule) error {
	for _, v6 := range []bool{false, true} {
		backends := w.backends(v6)
		served := b.w.four
		if v6 {
			served = b.w.six
		}
		switch {
		case served && len(backends) > 0:
			if err := b.backends(k, v6, nil, w); err != nil {
				return err
			}
			if err := b.entry(portsMap(v6), k, b.only(k, v6, w, chainOf(k, v6))); err != nil {
				return err
			}
		case !v6 || !w.relayed:
			if err := b.entry(refusedMap(v6), k, b.only(k, v6, w, rejectChain)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *meshBuilder) entry(name string, k network.MeshKey, chain string) error {
	m, err := b.verdictMap(name)
	if err != nil {
		return err
	}
	b.maps[name]++
	return b.c.SetAddElements(m, []nftables.SetElement{{Key: meshElement(k), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}})
}

func meshElement(k network.MeshKey) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{protocolNumber(k.Protocol), 0, 0, 0}, k.Port), 0, 0)
}

// only returns the name of a chain that goes to chain for what comes to the
// addresses and devices on which the port is published.
func (b *meshBuilder) only(k network.MeshKey, v6 bool, w *meshRule, chain string) string {
	if !w.restricted() {
		return chain
	}
	c := b.chain(chainOf(k, v6) + "-on")
	then := []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
	for _, p := range w.on {
		if p.Addr().Is6() == v6 {
			b.rule(c, b.address(false, p.Masked()), then)
		}
	}
	for _, d := range w.devices {
		b.rule(c, iif(expr.CmpOpEq, d), then)
	}
	for _, a := range w.deviceOn {
		if a.Is6() == v6 { // from the host itself, as it goes and as it comes
			b.rule(c, oif(expr.CmpOpEq, "lo"), b.address(false, netip.PrefixFrom(a, a.BitLen())), then)
			b.rule(c, iif(expr.CmpOpEq, "lo"), b.address(false, netip.PrefixFrom(a, a.BitLen())), then)
		}
	}
	return c.Name
}

// backends writes the chain that chooses a backend, and the map it chooses from,
// which has the elements of have.
func (b *meshBuilder) backends(k network.MeshKey, v6 bool, have []netip.Addr, w *meshRule) error {
	addr := nftables.TypeIPAddr
	if v6 {
		addr = nftables.TypeIP6Addr
	}
	m := &nftables.Set{Table: b.t, Name: chainOf(k, v6), IsMap: true, KeyType: nftables.TypeMark, DataType: addr}
	if have == nil {
		if err := b.c.AddSet(m, nil); err != nil {
			return err
		}
	}
	list := w.slots(v6)
	b.maps[m.Name] = len(list)
	if err := b.elements(m, have, list); err != nil {
		return err
	}
	n := uint32(len(list))
	var choose []expr.Any
	if w.balance == network.BalanceClient {
		offset, size := saddrAt(v6)
		choose = []expr.Any{
			&expr.Payload{DestRegister: reg32, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Hash{SourceRegister: reg32, DestRegister: reg32, Length: size, Modulus: n, Type: expr.HashTypeJenkins, Seed: 1},
		}
	} else {
		choose = []expr.Any{&expr.Numgen{Register: reg32, Modulus: n, Type: unix.NFT_NG_RANDOM}}
	}
	b.rule(b.chain(chainOf(k, v6)), b.setMark(expr.MetaKeyMARK, b.w.mark), b.setConnMark(), choose, []expr.Any{
		&expr.Lookup{SourceRegister: reg32, DestRegister: reg32, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.Immediate{Register: reg32 + 4, Data: binary.BigEndian.AppendUint16(nil, w.target)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: natFamily(v6), RegAddrMin: reg32, RegProtoMin: reg32 + 4},
	})
	return nil
}

// elements makes a map by number have what want has, where it had have.
func (b *meshBuilder) elements(m *nftables.Set, have, want []netip.Addr) error {
	var gone, come []nftables.SetElement
	for i := range max(len(have), len(want)) {
		key := binary.NativeEndian.AppendUint32(nil, uint32(i))
		if i < len(have) && i < len(want) && have[i] == want[i] {
			continue
		}
		if i < len(have) {
			gone = append(gone, nftables.SetElement{Key: key})
		}
		if i < len(want) {
			come = append(come, nftables.SetElement{Key: key, Val: want[i].AsSlice()})
		}
	}
	for part := range slices.Chunk(gone, elementsAtOnce) {
		if err := b.c.SetDeleteElements(m, part); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(come, elementsAtOnce) {
		if err := b.c.SetAddElements(m, part); err != nil {
			return err
		}
	}
	return nil
}

// changePort changes a port's backends, which it has in the same families.
func (b *meshBuilder) changePort(k network.MeshKey, have, want *meshRule) error {
	for _, v6 := range []bool{false, true} {
		served := b.w.four
		if v6 {
			served = b.w.six
		}
		if !served || slices.Equal(have.slots(v6), want.slots(v6)) {
			continue
		}
		b.c.FlushChain(&nftables.Chain{Table: b.t, Name: chainOf(k, v6)})
		if err := b.backends(k, v6, have.slots(v6), want); err != nil {
			return err
		}
	}
	return nil
}

// dropPort removes what putPort wrote.
func (b *meshBuilder) dropPort(k network.MeshKey, w *meshRule) error {
	for _, v6 := range []bool{false, true} {
		served := b.w.four
		if v6 {
			served = b.w.six
		}
		serves := served && len(w.backends(v6)) > 0
		name := portsMap(v6)
		if !serves {
			if v6 && w.relayed {
				continue
			}
			name = refusedMap(v6)
		}
		m, err := b.verdictMap(name)
		if err != nil {
			return err
		}
		if err := b.c.SetDeleteElements(m, []nftables.SetElement{{Key: meshElement(k)}}); err != nil {
			return err
		}
		if w.restricted() {
			b.remove(chainOf(k, v6) + "-on")
		}
		if serves {
			b.remove(chainOf(k, v6))
			b.c.DelSet(&nftables.Set{Table: b.t, Name: chainOf(k, v6)})
		}
	}
	return nil
}

func (b *meshBuilder) remove(chain string) {
	c := &nftables.Chain{Table: b.t, Name: chain}
	b.c.FlushChain(c)
	b.c.DelChain(c)
}
