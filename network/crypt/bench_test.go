package crypt

import (
	"encoding/binary"
	"slices"
	"testing"
)

// superpacket is a frame as a stream over TCP and IPv4 has them, with timestamps.
func superpacket(size, pieces int) []byte {
	const options, start = 12, ethernet + minIPv4
	v := make([]byte, VnetHeader)
	v[0], v[1] = vnetNeedsChecksum, gsoTCP4
	binary.NativeEndian.PutUint16(v[4:], uint16(size))
	binary.NativeEndian.PutUint16(v[6:], start)
	binary.NativeEndian.PutUint16(v[8:], tcpChecksumAt)
	f := make([]byte, start+minTCP+options+size*pieces)
	to, from := mac(2), mac(1)
	copy(f[copy(f, to[:]):], from[:])
	f[12], f[14], f[start+12] = 8, 0x45, (minTCP+options)/4<<4
	return slices.Concat(v, f)
}

// BenchmarkFrame seals a frame of as many pieces as a message takes, and opens it.
func BenchmarkFrame(b *testing.B) {
	w := newWorld(b)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	const mtu = 1410
	frame := superpacket(mtu-minIPv4-minTCP-12, Pieces(mtu))
	s, o := w.nodes[addr(1)].NewSealer(), w.nodes[addr(2)].NewOpener()
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		s.Begin(vni, frame)
		for _, data, size, ok := s.Next(); ok; _, data, size, ok = s.Next() {
			if frames, _, _ := o.Open(addr(1), data, size); len(frames) != 1 {
				b.Fatal("it does not arrive whole")
			}
		}
	}
}
