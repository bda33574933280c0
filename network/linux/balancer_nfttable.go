package linux

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// vipWriter writes the table of one family.
type vipWriter struct {
	c *filterConn
	t *nftables.Table
}

func newVIPWriter(c *filterConn, a netip.Addr) *vipWriter {
	f := nftables.TableFamilyIPv4
	if a.Is6() {
		f = nftables.TableFamilyIPv6
	}
	return &vipWriter{c: c, t: &nftables.Table{Family: f, Name: vipTable}}
}

func (w *vipWriter) addrType() (t nftables.SetDatatype, offset, size uint32) {
	if w.t.Family == nftables.TableFamilyIPv6 {
		return nftables.TypeIP6Addr, 24, 16
	}
	return nftables.TypeIPAddr, 16, 4
}

func (w *vipWriter) set() *nftables.Set {
	key, _, _ := w.addrType()
	return &nftables.Set{Table: w.t, Name: vipMap, IsMap: true, KeyType: key, DataType: nftables.TypeVerdict}
}

// base: what the sandbox itself sends to an address in the map goes to its chain.
func (w *vipWriter) base() error {
	s := w.set()
	if err := w.c.AddSet(s, nil); err != nil {
		return err
	}
	_, offset, size := w.addrType()
	out := w.c.AddChain(&nftables.Chain{
		Table: w.t, Name: "output", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityRef(priorityDstNAT),
	})
	// Only while some rule asks for it does the kernel track connections: this one
	// does, and matches none that comes here.
	w.c.AddRule(&nftables.Rule{Table: w.t, Chain: out, Exprs: append(ctDNAT(), verdict(expr.VerdictReturn)...)})
	w.c.AddRule(&nftables.Rule{Table: w.t, Chain: out, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
	}})
	return nil
}

func vipChain(a netip.Addr) string { return fmt.Sprintf("v%x", a.AsSlice()) }

// put has an address lead to backends; fresh: it has no chain yet.
func (w *vipWriter) put(a netip.Addr, backends []netip.Addr, fresh bool) {
	chain := &nftables.Chain{Table: w.t, Name: vipChain(a)}
	if fresh {
		w.c.AddChain(chain)
	} else {
		w.c.FlushChain(chain)
	}
	if len(backends) == 0 {
		w.refuse(chain)
	} else {
		w.spread(chain, backends)
	}
	if fresh {
		_ = w.c.SetAddElements(w.set(), []nftables.SetElement{{Key: a.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}})
	}
}

func (w *vipWriter) drop(a netip.Addr) {
	_ = w.c.SetDeleteElements(w.set(), []nftables.SetElement{{Key: a.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: vipChain(a)}}})
	chain := &nftables.Chain{Table: w.t, Name: vipChain(a)}
	w.c.FlushChain(chain)
	w.c.DelChain(chain)
}

// refuse answers as a host does on which nobody listens.
func (w *vipWriter) refuse(chain *nftables.Chain) {
	w.c.AddRule(&nftables.Rule{Table: w.t, Chain: chain, Exprs: append(protocol(unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})})
	for _, n := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		reject := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPort(w.t.Family)}
		w.c.AddRule(&nftables.Rule{Table: w.t, Chain: chain, Exprs: append(protocol(n), reject)})
	}
}

// icmpPort is the code for "port unreachable", which the families number their
// own ways.
func icmpPort(f nftables.TableFamily) uint8 {
	if f == nftables.TableFamilyIPv6 {
		return 4 // ICMPV6_PORT_UNREACH
	}
	return 3 // ICMP_PORT_UNREACH
}

// spread translates to one of the backends at random.
func (w *vipWriter) spread(chain *nftables.Chain, backends []netip.Addr) {
	kind, _, _ := w.addrType()
	number := nftables.TypeInteger
	number.Bytes = 4
	m := &nftables.Set{Table: w.t, Anonymous: true, Constant: true, IsMap: true, KeyType: number, DataType: kind}
	elements := make([]nftables.SetElement, len(backends))
	for i, a := range backends {
		elements[i] = nftables.SetElement{Key: binary.NativeEndian.AppendUint32(nil, uint32(i)), Val: a.AsSlice()}
	}
	protocols := &nftables.Set{Table: w.t, Anonymous: true, Constant: true, KeyType: nftables.TypeInetProto}
	_ = w.c.AddSet(m, elements)
	_ = w.c.AddSet(protocols, []nftables.SetElement{{Key: []byte{unix.IPPROTO_TCP}}, {Key: []byte{unix.IPPROTO_UDP}}, {Key: []byte{unix.IPPROTO_SCTP}}})
	w.c.AddRule(&nftables.Rule{Table: w.t, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: protocols.Name, SetID: protocols.ID},
		&expr.Numgen{Register: 1, Modulus: uint32(len(backends)), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(w.t.Family), RegAddrMin: 1},
	}})
}
