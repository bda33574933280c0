package linux

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg32 is the first of the registers of 4 bytes (NFT_REG32_00).
const reg32 = 8

// ipsDNAT is the bit of ct status that says that the destination was translated
// (IPS_DST_NAT).
const ipsDNAT = 1 << 5

func iif(op expr.CmpOp, device string) []expr.Any { return name(expr.MetaKeyIIFNAME, op, device) }
func oif(op expr.CmpOp, device string) []expr.Any { return name(expr.MetaKeyOIFNAME, op, device) }

func name(key expr.MetaKey, op expr.CmpOp, device string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, device)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

func verdict(v expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: v}} }

// anyBit matches if the value that first loads in register 1 has one of bits.
func anyBit(first expr.Any, bits uint32) []expr.Any {
	return []expr.Any{
		first,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func ctState(bits uint32) []expr.Any {
	return anyBit(&expr.Ct{Register: 1, Key: expr.CtKeySTATE}, bits)
}

func ctDNAT() []expr.Any {
	return anyBit(&expr.Ct{Register: 1, Key: expr.CtKeySTATUS}, ipsDNAT)
}

func (b *tableBuilder) daddrOffset() uint32 {
	if b.v6() {
		return 24
	}
	return 16
}

func (b *tableBuilder) daddr(p netip.Prefix) []expr.Any { return inPrefix(b.daddrOffset(), p) }

func (b *tableBuilder) saddr(p netip.Prefix) []expr.Any {
	if b.v6() {
		return inPrefix(8, p)
	}
	return inPrefix(12, p)
}

// inPrefix matches if the address at an offset of the IP header is in p. The kernel
// looks for each expression by name, one by one: none is there for nothing.
func inPrefix(offset uint32, p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().AsSlice()
	size := uint32(len(addr))
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
	compare := &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr}
	switch {
	case p.Bits() == 0:
		return nil // all are
	case p.IsSingleIP():
		return []expr.Any{load, compare}
	}
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), int(8*size)), Xor: make([]byte, size)},
		compare,
	}
}
