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
// thread's namespace. Packets are rewritten one by one, both ways, as they
// leave a socket: nothing is tracked, so no table of connections can fill up
// and a query costs hardly more than without. Answers from the resolver come
// from port 53 again.
func leadDNS(udp, tcp uint16) error {
	err := writeLead(udp, tcp, false)
	if errors.Is(err, unix.EEXIST) { // of an earlier daemon
		err = writeLead(udp, tcp, true)
	}
	if err != nil {
		return fmt.Errorf("lead port 53 to it (nftables): %w", err)
	}
	return nil
}

// writeLead writes the table. To replace one, which has the kernel wait some
// milliseconds when the socket is closed, has to be asked for.
func writeLead(udp, tcp uint16, replace bool) error {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return err
	}
	closed := func() { _ = c.CloseLasting() }
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: resolverTable}
	if replace {
		c.AddTable(t) // so that there is one to delete
		c.DelTable(t)
		defer func() { go closed() }()
	} else {
		defer closed()
	}
	c.CreateTable(t)
	b := &tableBuilder{c: c, family: t.Family, t: t}
	chain := b.chain("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, priorityRaw)
	b.rule(chain, oifIndex(expr.CmpOpNeq, loopback), verdict(expr.VerdictAccept))
	for _, l := range []struct {
		proto    byte
		port     uint16
		checksum uint32 // offset of the header's
	}{{unix.IPPROTO_UDP, udp, 6}, {unix.IPPROTO_TCP, tcp, 16}} {
		b.rule(chain, protocol(l.proto), address4(16, resolverAddr().As4()), transportPort(2, dnsPort), rewritePort(2, l.port, l.checksum))
		b.rule(chain, protocol(l.proto), address4(12, resolverAddr().As4()), transportPort(0, l.port), rewritePort(0, dnsPort, l.checksum))
	}
	return c.Flush()
}

// unleadDNS undoes leadDNS, so that who asks is refused at once.
func unleadDNS() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: resolverTable})
	return c.Flush()
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
