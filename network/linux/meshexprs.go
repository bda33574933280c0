package linux

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Expressions of tables for both families.

func nfproto(v6 bool) []expr.Any {
	f := byte(unix.NFPROTO_IPV4)
	if v6 {
		f = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}}}
}

func natFamily(v6 bool) uint32 {
	if v6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

// local matches what is for an address of the host.
func local() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// Directions of a connection (IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY).
func original() []expr.Any { return direction(0) }
func reply() []expr.Any    { return direction(1) }

func direction(d byte) []expr.Any {
	return []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeyDIRECTION}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{d}}}
}

// neighbours matches neighbour discovery, without which IPv6 goes nowhere:
// solicitations and advertisements (RFC 4861).
func neighbours() []expr.Any {
	return append(l4proto(unix.IPPROTO_ICMPV6),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{135}, ToData: []byte{136}})
}

// saddrAt is where an IP header has the source.
func saddrAt(v6 bool) (offset, size uint32) {
	if v6 {
		return 8, 16
	}
	return 12, 4
}

// address matches the source or the destination, and with it the family.
func (b *meshBuilder) address(source bool, p netip.Prefix) []expr.Any {
	return addressIn(source, p)
}

func addressIn(source bool, p netip.Prefix) []expr.Any {
	offset, size := saddrAt(p.Addr().Is6())
	if !source {
		offset += size
	}
	return append(nfproto(p.Addr().Is6()), inPrefix(offset, p)...)
}

// masked loads a value in register 1 and keeps the bits of mask.
func masked(first expr.Any, mask uint32) []expr.Any {
	return []expr.Any{first, &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, mask), Xor: make([]byte, 4),
	}}
}

func equals(v uint32) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, v)}
}

// connMark matches connections of the mesh.
func (b *meshBuilder) connMark() []expr.Any {
	return append(masked(&expr.Ct{Register: 1, Key: expr.CtKeyMARK}, meshMask), equals(b.w.mark))
}

// withBits replaces the mesh's bits of the mark that first loads.
func withBits(first expr.Any, mark uint32) []expr.Any {
	return []expr.Any{first, &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 4,
		Mask: binary.NativeEndian.AppendUint32(nil, ^uint32(meshMask)), Xor: binary.NativeEndian.AppendUint32(nil, mark),
	}}
}

func (b *meshBuilder) setMark(key expr.MetaKey, mark uint32) []expr.Any {
	return append(withBits(&expr.Meta{Key: key, Register: 1}, mark), &expr.Meta{Key: key, Register: 1, SourceRegister: true})
}

func (b *meshBuilder) setConnMark() []expr.Any {
	return append(withBits(&expr.Ct{Register: 1, Key: expr.CtKeyMARK}, b.w.mark), &expr.Ct{Register: 1, Key: expr.CtKeyMARK, SourceRegister: true})
}
