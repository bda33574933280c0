package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// resolverTable is the table in a sandbox that leads to its resolver.
const resolverTable = "legion_dns"

// leadDNS leads port 53 of 127.0.0.11 to other ports of that address, in the
// thread's namespace. fresh: there is no table of an earlier daemon there.
func (p *Plane) leadDNS(udp, tcp uint16, fresh bool) error {
	var t transaction
	t.leadDNS(udp, tcp, fresh)
	err := p.commit(&t)
	if fresh && errors.Is(err, unix.EEXIST) {
		return p.leadDNS(udp, tcp, false)
	}
	if err != nil {
		return fmt.Errorf("lead port 53 to it (nftables): %w", err)
	}
	return nil
}

// leadDNS writes the table. Packets are rewritten one by one, both ways, as they
// leave a socket: nothing is tracked, so no table of connections can fill up
// and a query costs hardly more than without. Answers from the resolver come
// from port 53 again.
func (t *transaction) leadDNS(udp, tcp uint16, fresh bool) {
	x := resolverTableOf()
	t.fresh(x, fresh)
	const output = "output"
	t.chain(x, output, nftables.ChainTypeFilter, nftables.ChainHookOutput, priorityRaw, "")
	t.rule(x, output, oifIndex(expr.CmpOpNeq, loopback), verdict(expr.VerdictAccept))
	for _, l := range []struct {
		proto    byte
		port     uint16
		checksum uint32 // offset of the header's
	}{{unix.IPPROTO_UDP, udp, 6}, {unix.IPPROTO_TCP, tcp, 16}} {
		t.rule(x, output, protocol(l.proto), address4(16, resolverAddr().As4()), transportPort(2, dnsPort), rewritePort(2, l.port, l.checksum))
		t.rule(x, output, protocol(l.proto), address4(12, resolverAddr().As4()), transportPort(0, l.port), rewritePort(0, dnsPort, l.checksum))
	}
}

func resolverTableOf() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: resolverTable}
}

// unleadDNS undoes leadDNS, so that who asks is refused at once.
func unleadDNS() error {
	var t transaction
	t.drop(resolverTableOf())
	return t.commit()
}

func oifIndex(op expr.CmpOp, index uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIF, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, index)},
	}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

// address4 matches an address at an offset of an IPv4 header.
func address4(offset uint32, a [4]byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a[:]},
	}
}

// transportPort matches a port at an offset of a UDP or TCP header.
func transportPort(offset uint32, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// rewritePort writes a port at an offset of a UDP or TCP header, whose checksum
// is at another; the packet is not tracked, and no other table sees it before.
func rewritePort(offset uint32, port uint16, checksum uint32) []expr.Any {
	return []expr.Any{
		&expr.Notrack{},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		},
	}
}
