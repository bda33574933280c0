package crypt

import "encoding/binary"

// Sizes and fields of frames.
const (
	// VnetHeader is the length of struct virtio_net_hdr, which comes before each
	// frame to or from the kernel.
	VnetHeader = 10
	// MaxFrame is the most that comes from the kernel at once, with that header.
	MaxFrame = VnetHeader + 14 + 4 + 65535

	pieceHeader = 12

	vnetNeedsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	gsoNone           = 0
	gsoTCP4           = 1
	gsoTCP6           = 4
	gsoECN            = 0x80

	pieceChecksum = 1 // flag: the kernel is to fill in the checksum
	pieceLast     = 2 // flag: it has the frame's end
)

// piece is what the first bytes of what a packet protects say.
type piece struct {
	flags, gso byte
	headers    uint16 // length of the frame's own; only of those that are in pieces
	size       uint16 // of the payload in each piece but the last; likewise
	sumStart   uint16
	sumOffset  uint16
	index      uint16
}

func (p *piece) put(b []byte) {
	b[0], b[1] = p.flags, p.gso
	binary.BigEndian.PutUint16(b[2:], p.headers)
	binary.BigEndian.PutUint16(b[4:], p.size)
	binary.BigEndian.PutUint16(b[6:], p.sumStart)
	binary.BigEndian.PutUint16(b[8:], p.sumOffset)
	binary.BigEndian.PutUint16(b[10:], p.index)
}

func readPiece(b []byte) piece {
	return piece{
		flags: b[0], gso: b[1], headers: binary.BigEndian.Uint16(b[2:]), size: binary.BigEndian.Uint16(b[4:]),
		sumStart: binary.BigEndian.Uint16(b[6:]), sumOffset: binary.BigEndian.Uint16(b[8:]), index: binary.BigEndian.Uint16(b[10:]),
	}
}

// vnet reads what the kernel says of a frame.
func vnet(b []byte) (p piece) {
	if b[0]&vnetNeedsChecksum != 0 {
		p.flags = pieceChecksum
	}
	p.gso, p.size = b[1], binary.NativeEndian.Uint16(b[4:])
	p.sumStart, p.sumOffset = binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint16(b[8:])
	return p
}

// putVnet tells the kernel of a frame.
func (p *piece) putVnet(b []byte) {
	clear(b[:VnetHeader])
	if p.flags&pieceChecksum != 0 {
		b[0] = vnetNeedsChecksum
		binary.NativeEndian.PutUint16(b[6:], p.sumStart)
		binary.NativeEndian.PutUint16(b[8:], p.sumOffset)
	}
	if p.gso != gsoNone {
		b[1] = p.gso
		binary.NativeEndian.PutUint16(b[2:], p.headers)
		binary.NativeEndian.PutUint16(b[4:], p.size)
	}
}

const (
	macSize       = 6
	ethernet      = 14
	tcpChecksumAt = 16
	minTCP        = 20
	minIPv4       = 20
	minIPv6       = 40
)

// network returns where a frame's network header begins and whether it is IPv6's;
// false if it has none of either.
func networkHeader(f []byte) (at int, six, ok bool) {
	at = ethernet
	for range 3 { // two tags at most
		if len(f) < at {
			return 0, false, false
		}
		switch binary.BigEndian.Uint16(f[at-2:]) {
		case 0x8100, 0x88a8:
			at += 4
		case 0x0800:
			return at, false, len(f) >= at+minIPv4 && f[at]>>4 == 4
		case 0x86dd:
			return at, true, len(f) >= at+minIPv6 && f[at]>>4 == 6
		default:
			return 0, false, false
		}
	}
	return 0, false, false
}

// measure finds how long the headers are of a frame that is to go in pieces; false
// if it is not as the kernel makes such.
func (p *piece) measure(f []byte) bool {
	at, six, ok := networkHeader(f)
	start := int(p.sumStart)
	if !ok || six != (p.gso&^gsoECN == gsoTCP6) || start < at+minIPv4 || len(f) < start+minTCP {
		return false
	}
	headers := start + int(f[start+12]>>4)*4
	p.headers = uint16(headers)
	return headers >= start+minTCP && headers < len(f) && headers <= 0xffff && p.size > 0 && p.flags&pieceChecksum != 0 && p.sumOffset == tcpChecksumAt
}

// tcp reports whether it is of a frame that goes in pieces.
func (p *piece) tcp() bool { g := p.gso &^ gsoECN; return g == gsoTCP4 || g == gsoTCP6 }

const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// adjust makes the headers of a frame those of the part of it that begins with the
// piece and has n bytes of payload; whole has its end. f begins with the headers,
// which measure accepts.
func (p *piece) adjust(f []byte, n int, end bool) {
	at, six, _ := networkHeader(f)
	start := int(p.sumStart)
	length := int(p.headers) - at + n // of the packet
	if six {
		binary.BigEndian.PutUint16(f[at+4:], uint16(length-minIPv6))
	} else {
		binary.BigEndian.PutUint16(f[at+2:], uint16(length))
		binary.BigEndian.PutUint16(f[at+4:], binary.BigEndian.Uint16(f[at+4:])+p.index)
		f[at+10], f[at+11] = 0, 0
		ip := f[at : at+min(int(f[at]&15)*4, start-at)]
		binary.BigEndian.PutUint16(f[at+10:], ^sum(0, ip))
	}
	tcp := f[start:]
	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(p.index)*uint32(p.size))
	if !end {
		tcp[13] &^= tcpFIN | tcpPSH
	}
	if p.index > 0 {
		tcp[13] &^= tcpCWR
	}
	addresses := f[at+12 : at+minIPv4]
	if six {
		addresses = f[at+8 : at+minIPv6]
	}
	const protocol = 6
	pseudo := uint32(protocol) + uint32(int(p.headers)-start+n)
	binary.BigEndian.PutUint16(tcp[tcpChecksumAt:], sum(pseudo, addresses))
}

// sum is the Internet checksum (RFC 1071), not complemented.
func sum(s uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
