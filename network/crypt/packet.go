package crypt

import "encoding/binary"

// Sizes, in bytes.
const (
	// KeySize of the swarm's keys.
	KeySize = 32

	headerSize = 20
	tagSize    = 16 // GCM's
	startSize  = 16
	helloSize  = headerSize + startSize + 2*challengeSize + tagSize

	challengeSize = 8
	// minData is a data packet with an empty piece.
	minData = headerSize + pieceHeader + tagSize
	// maxDatagram is the most that a UDP datagram over IPv4 has.
	maxDatagram = 65507
)

const (
	kindData  = 0x11
	kindHello = 0x12
)

// header is of a data packet.
type header struct {
	vni, key, tag uint32
	counter       uint64
}

func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, kindData<<24|h.vni)
	binary.BigEndian.PutUint32(b[4:], h.key)
	binary.BigEndian.PutUint32(b[8:], h.tag)
	binary.BigEndian.PutUint64(b[12:], h.counter)
}

// readHeader reads a data packet's header; false if it is none.
func readHeader(b []byte) (h header, ok bool) {
	if len(b) < minData || b[0] != kindData {
		return header{}, false
	}
	return header{
		vni: binary.BigEndian.Uint32(b) & 0xffffff, key: binary.BigEndian.Uint32(b[4:]), tag: binary.BigEndian.Uint32(b[8:]),
		counter: binary.BigEndian.Uint64(b[12:]),
	}, true
}

// hello tells the other node the number of this one.
type hello struct {
	start [startSize]byte
	// challenge is to be answered, echo answers one; 0: none.
	challenge, echo uint64
}

func (m hello) append(b []byte) []byte {
	b = append(b, m.start[:]...)
	b = binary.BigEndian.AppendUint64(b, m.challenge)
	return binary.BigEndian.AppendUint64(b, m.echo)
}

func readHello(b []byte) (m hello) {
	copy(m.start[:], b)
	m.challenge = binary.BigEndian.Uint64(b[startSize:])
	m.echo = binary.BigEndian.Uint64(b[startSize+challengeSize:])
	return m
}
