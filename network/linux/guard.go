package linux

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// A VXLAN socket takes frames from whoever knows the id, at all addresses of its
// host. The guard is a table of its own that lets in those from the overlay's
// nodes only, at the data-path address. An encrypted overlay's id is let in from
// nobody.
const (
	priorityGuard = -310 // before others translate or track
	guardIDs      = "ids"
	guardSources  = "sources"
	// vxlanIDOffset is where the id is behind the UDP header's begin, and
	// vxlanIDSize how long it is (RFC 7348).
	vxlanIDOffset = 12
	vxlanIDSize   = 3
)

// guard is the contents of that table. A nil one is no table.
type guard struct {
	local   netip.Addr
	port    uint16
	ids     map[uint32]struct{} // that are ours
	sources map[tunnelSource]struct{}
}

// tunnelSource is a node that has endpoints in the overlay with the id.
type tunnelSource struct {
	node netip.Addr
	vni  uint32
}

// guardState is what is believed to be there.
type guardState struct {
	known bool
	is    *guard
}

// wantedGuard returns what is to be let in for the overlays of to, and those of
// now that still exist.
func (p *Plane) wantedGuard(now, to *network.Config) (*guard, error) {
	g := &guard{local: to.Underlay.Local, port: to.Underlay.Port, ids: map[uint32]struct{}{}, sources: map[tunnelSource]struct{}{}}
	for _, o := range now.Overlays {
		if o.VNI != 0 {
			g.ids[o.VNI] = struct{}{}
		}
	}
	for _, o := range to.Overlays {
		g.ids[o.VNI] = struct{}{}
		if o.Encrypted {
			continue
		}
		peers := o.Peers
		if o.Unknown { // the tunnel stays as it is, and so does who may use it
			var err error
			if peers, err = p.asItIs(o.ID, g); err != nil {
				return nil, err
			}
		}
		for _, peer := range peers {
			g.sources[tunnelSource{peer.Node, o.VNI}] = struct{}{}
		}
	}
	// What comes by the other family is not let in.
	maps.DeleteFunc(g.sources, func(s tunnelSource, _ struct{}) bool { return s.node.Is4() != g.local.Is4() })
	rules := g.local.Is4() && to.Rules4 || g.local.Is6() && to.Rules6
	if len(g.ids) == 0 || !rules || g.port == 0 {
		return nil, nil
	}
	return g, nil
}

// asItIs reads the peers of an overlay whose namespace may not be there yet; its
// tunnel says what the underlay is, if nobody else does.
func (p *Plane) asItIs(id string, g *guard) ([]network.Peer, error) {
	if !bound(p.overlayPath(id)) {
		return nil, nil
	}
	h, err := p.overlayHandle(id)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, err := h.LinkByName(overlayTunnel)
	v, ok := l.(*netlink.Vxlan)
	if isNotFound(err) || err == nil && !ok {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if a, ok := netip.AddrFromSlice(v.SrcAddr); ok && !g.local.IsValid() {
		g.local, g.port = a.Unmap(), uint16(v.Port)
	}
	return readPeers(h, l)
}

// setGuard lets in what the overlays of to need, besides keeping the ids of now's.
func (p *Plane) setGuard(now, to *network.Config) error {
	want, err := p.wantedGuard(now, to)
	if err == nil {
		err = p.changeGuard(want)
	}
	if err != nil && want == nil && !to.Rules4 && !to.Rules6 {
		err = nil // there are no rules here at all
	}
	if err != nil {
		p.guard.known = false
		return fmt.Errorf("rules for what comes through tunnels (nftables, table %s; --iptables=false does without): %w", p.guardTable(), err)
	}
	p.guard = guardState{known: true, is: want}
	return nil
}

func (p *Plane) changeGuard(want *guard) error {
	have := p.guard.is
	switch {
	case p.guard.known && want.equal(have):
		return nil
	case p.guard.known && want != nil && have != nil && want.local == have.local && want.port == have.port:
		return p.transact(func(c *filterConn) error { return p.guardBuilder(c, want).change(have) })
	}
	return p.transact(func(c *filterConn) error {
		t := &nftables.Table{Family: nftables.TableFamilyINet, Name: p.guardTable()}
		c.AddTable(t) // so that there is one to delete
		c.DelTable(t)
		if want == nil {
			return nil
		}
		c.AddTable(t)
		return p.guardBuilder(c, want).fill()
	})
}

func (p *Plane) guardTable() string { return p.table + "-tunnels" }

func (g *guard) equal(o *guard) bool {
	if g == nil || o == nil {
		return g == o
	}
	return g.local == o.local && g.port == o.port && maps.Equal(g.ids, o.ids) && maps.Equal(g.sources, o.sources)
}

// guardBuilder writes the table.
type guardBuilder struct {
	c            *filterConn
	g            *guard
	t            *nftables.Table
	ids, sources *nftables.Set
}

func (p *Plane) guardBuilder(c *filterConn, g *guard) *guardBuilder {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: p.guardTable()}
	addr := nftables.TypeIPAddr
	if g.local.Is6() {
		addr = nftables.TypeIP6Addr
	}
	// Of the types that have the size of an id in a register, mark is one whose size the
	// nft program knows: it aborts on lists with another in a concatenation.
	return &guardBuilder{
		c: c, g: g, t: t,
		ids:     &nftables.Set{Table: t, Name: guardIDs, KeyType: nftables.TypeMark},
		sources: &nftables.Set{Table: t, Name: guardSources, Concatenation: true, KeyType: nftables.MustConcatSetType(addr, nftables.TypeMark)},
	}
}

// idKey is an id as it is in a register: its three bytes, and a zero.
func idKey(vni uint32) []byte { return binary.BigEndian.AppendUint32(nil, vni<<8) }

func (s tunnelSource) key() []byte { return append(s.node.AsSlice(), idKey(s.vni)...) }

// guardRules is how many rules fill writes.
const guardRules = 2

func (b *guardBuilder) fill() error {
	var ids, sources []nftables.SetElement
	for id := range b.g.ids {
		ids = append(ids, nftables.SetElement{Key: idKey(id)})
	}
	for s := range b.g.sources {
		sources = append(sources, nftables.SetElement{Key: s.key()})
	}
	if err := b.c.AddSet(b.ids, ids); err != nil {
		return err
	}
	if err := b.c.AddSet(b.sources, sources); err != nil {
		return err
	}
	chain := b.c.AddChain(&nftables.Chain{
		Table: b.t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityRef(priorityGuard),
	})
	proto, src, dst, size := byte(unix.NFPROTO_IPV4), uint32(12), uint32(16), uint32(4)
	if b.g.local.Is6() {
		proto, src, dst, size = unix.NFPROTO_IPV6, 8, 24, 16
	}
	tunnel := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, b.g.port)},
	}
	id := func(register uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: vxlanIDOffset, Len: vxlanIDSize}
	}
	known := append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}, tunnel...)
	known = append(known,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: dst, Len: size},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b.g.local.AsSlice()},
		&expr.Payload{DestRegister: reg32, Base: expr.PayloadBaseNetworkHeader, Offset: src, Len: size},
		id(reg32+size/4),
		&expr.Lookup{SourceRegister: reg32, SetName: b.sources.Name, SetID: b.sources.ID},
		&expr.Verdict{Kind: expr.VerdictAccept})
	ours := append(tunnel[:len(tunnel):len(tunnel)], id(reg32),
		&expr.Lookup{SourceRegister: reg32, SetName: b.ids.Name, SetID: b.ids.ID},
		&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	for _, exprs := range [guardRules][]expr.Any{known, ours} {
		b.c.AddRule(&nftables.Rule{Table: b.t, Chain: chain, Exprs: exprs})
	}
	return nil
}

// change makes the elements those wanted, and touches nothing else.
func (b *guardBuilder) change(have *guard) error {
	for _, step := range []struct {
		set  *nftables.Set
		keys [][]byte
		f    func(*nftables.Set, []nftables.SetElement) error
	}{
		{b.sources, sourceKeys(have.sources, b.g.sources), b.c.SetDeleteElements},
		{b.ids, idKeys(b.g.ids, have.ids), b.c.SetAddElements}, // closed before it is opened
		{b.sources, sourceKeys(b.g.sources, have.sources), b.c.SetAddElements},
		{b.ids, idKeys(have.ids, b.g.ids), b.c.SetDeleteElements},
	} {
		var elements []nftables.SetElement
		for _, k := range step.keys {
			elements = append(elements, nftables.SetElement{Key: k})
		}
		if len(elements) == 0 {
			continue
		}
		if err := step.f(step.set, elements); err != nil {
			return err
		}
	}
	return nil
}

func sourceKeys(a, without map[tunnelSource]struct{}) (keys [][]byte) {
	for s := range a {
		if _, ok := without[s]; !ok {
			keys = append(keys, s.key())
		}
	}
	return keys
}

func idKeys(a, without map[uint32]struct{}) (keys [][]byte) {
	for id := range a {
		if _, ok := without[id]; !ok {
			keys = append(keys, idKey(id))
		}
	}
	return keys
}

// checkGuard forgets what is believed of a table that is not as it was left, if
// anybody has changed anything since.
func (p *Plane) checkGuard() {
	gen, err := p.generation()
	if err == nil && gen == p.gen.Load() {
		return
	}
	if p.guard.is != nil && !p.guardIntact() {
		p.guard.known = false
	}
}

func (p *Plane) guardIntact() bool {
	c, err := p.connect()
	if err != nil {
		return false
	}
	b := p.guardBuilder(c, p.guard.is)
	rules, err := c.GetRules(b.t, &nftables.Chain{Name: "input"})
	if err != nil || len(rules) != guardRules {
		return false
	}
	want := map[string]bool{}
	for _, k := range append(idKeys(b.g.ids, nil), sourceKeys(b.g.sources, nil)...) {
		want[string(k)] = true
	}
	for _, s := range []*nftables.Set{b.ids, b.sources} {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return false
		}
		for _, e := range elements {
			if !want[string(e.Key)] {
				return false
			}
			delete(want, string(e.Key))
		}
	}
	return len(want) == 0
}
