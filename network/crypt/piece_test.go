package crypt

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// segment is a TCP packet as the kernel would send it.
type segment struct {
	seq     uint32
	id      uint16
	flags   byte
	payload string
}

// large draws a frame that is to go in pieces, as the kernel gives it.
func large(t *rapid.T, to, from MAC) (frame []byte, headers int) {
	six := rapid.Bool().Draw(t, "IPv6")
	tagged := rapid.Bool().Draw(t, "tagged")
	options := rapid.IntRange(0, 10).Draw(t, "TCP options")
	size := rapid.IntRange(1, 1500).Draw(t, "size")
	payload := make([]byte, rapid.IntRange(size+1, min(60000, 200*size)).Draw(t, "payload"))
	for i := range payload {
		payload[i] = byte(i ^ i>>8)
	}
	f := append(slices.Clone(to[:]), from[:]...)
	if tagged {
		f = append(f, 0x81, 0, 0, 7)
	}
	tcp := 20 + 4*options
	if six {
		f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(tcp+len(payload)))
		f = append(append(f, 6, 64), bytes.Repeat([]byte{0xfd, 9}, 16)...)
	} else {
		more := rapid.IntRange(0, 3).Draw(t, "IP options")
		f = append(f, 8, 0, byte(0x45+more), 0)
		f = binary.BigEndian.AppendUint16(f, uint16(20+4*more+tcp+len(payload)))
		f = append(f, 0xff, 0xfe, 0x40, 0, 64, 6, 0, 0, 10, 0, 1, 2, 10, 0, 1, 3)
		f = append(f, bytes.Repeat([]byte{1}, 4*more)...)
	}
	start := len(f)
	f = append(f, 1, 2, 0, 80, 0xff, 0xff, 0xff, 0xf0, 5, 6, 7, 8, byte(5+options)<<4, rapid.Byte().Draw(t, "flags"), 1, 1, 0, 0, 0, 0)
	f = append(f, bytes.Repeat([]byte{1}, 4*options)...)
	headers = len(f)
	v := make([]byte, VnetHeader)
	v[0], v[1] = vnetNeedsChecksum, gsoTCP4
	if six {
		v[1] = gsoTCP6
	}
	if rapid.Bool().Draw(t, "ECN") {
		v[1] |= gsoECN
	}
	binary.NativeEndian.PutUint16(v[2:], uint16(headers+rapid.IntRange(0, 5).Draw(t, "linear"))) // a hint
	binary.NativeEndian.PutUint16(v[4:], uint16(size))
	binary.NativeEndian.PutUint16(v[6:], uint16(start))
	binary.NativeEndian.PutUint16(v[8:], tcpChecksumAt)
	return append(append(v, f...), payload...), headers
}

// segments is what the kernel makes of a frame; it fails for one that the kernel
// would not take.
func segments(t *rapid.T, frame []byte) (all []segment) {
	p, f := vnet(frame), frame[VnetHeader:]
	at, six, ok := networkHeader(f)
	start := int(p.sumStart)
	if !ok || p.flags&pieceChecksum == 0 || len(f) < start+minTCP {
		t.Fatalf("no TCP: %x", f)
	}
	headers := start + int(f[start+12]>>4)*4
	length, id := int(binary.BigEndian.Uint16(f[at+2:])), binary.BigEndian.Uint16(f[at+4:])
	pseudo := f[at+12 : at+20]
	if six {
		length, id = int(binary.BigEndian.Uint16(f[at+4:]))+minIPv6, 0
		pseudo = f[at+8 : at+40]
	} else if sum(0, f[at:start]) != 0xffff {
		t.Fatal("the IP checksum is wrong")
	}
	if length != len(f)-at {
		t.Fatalf("length %d of %d", length, len(f)-at)
	}
	if got, want := binary.BigEndian.Uint16(f[start+tcpChecksumAt:]), sum(uint32(6+len(f)-start), pseudo); got != want {
		t.Fatalf("the pseudo header's sum is %x, not %x", got, want)
	}
	size, rest := int(p.size), f[headers:]
	if p.gso == gsoNone {
		size = len(rest)
	} else if want := int(binary.NativeEndian.Uint16(frame[2:])); want != headers {
		t.Fatalf("headers of %d are said to be %d", headers, want)
	}
	seq, flags := binary.BigEndian.Uint32(f[start+4:]), f[start+13]
	for first := true; len(rest) > 0; first = false {
		part := rest[:min(size, len(rest))]
		rest = rest[len(part):]
		g := flags
		if !first {
			g &^= tcpCWR
		}
		if len(rest) > 0 {
			g &^= tcpFIN | tcpPSH
		}
		all = append(all, segment{seq, id, g, string(part)})
		seq += uint32(len(part))
		if !six {
			id++
		}
	}
	return all
}

// What arrives of a large frame is what the kernel would have sent, less what was
// lost, whatever comes when and however often.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		for i := 1; i <= 2; i++ {
			w.start(i, config(i, 2, 1, 1))
		}
		w.settle()
		frame, headers := large(r, mac(2), mac(1))
		f := frame[VnetHeader:]
		// As the kernel has it: sums that fit.
		whole := slices.Clone(frame)
		binary.NativeEndian.PutUint16(whole[2:], uint16(headers))
		p := vnet(whole)
		p.measure(f)
		p.adjust(whole[VnetHeader:], len(f)-headers, true)
		want := segments(r, whole)
		_, packets := w.seal(1, frame)
		if len(packets) != len(want) {
			r.Fatalf("%d packets for %d segments", len(packets), len(want))
		}
		var sent [][]byte
		arrives := map[segment]int{}
		for i, p := range packets {
			n := rapid.SampledFrom([]int{1, 1, 1, 1, 1, 1, 1, 1, 0, 2}).Draw(r, "copies")
			for range n {
				sent = append(sent, p)
			}
			if n > 0 {
				arrives[want[i]]++
			}
		}
		for range rapid.IntRange(0, 3).Draw(r, "swaps") {
			if len(sent) > 1 {
				i, j := rapid.IntRange(0, len(sent)-1).Draw(r, "i"), rapid.IntRange(0, len(sent)-1).Draw(r, "j")
				sent[i], sent[j] = sent[j], sent[i]
			}
		}
		o := w.nodes[addr(2)].NewOpener()
		for len(sent) > 0 {
			n, most := 1, rapid.IntRange(1, len(sent)).Draw(r, "at once")
			for n < most && len(sent[n-1]) == len(sent[0]) && len(sent[n]) <= len(sent[0]) { // as the kernel joins them
				n++
			}
			got, _, _ := o.Open(addr(1), bytes.Join(sent[:n], nil), len(sent[0]))
			for _, f := range got {
				for _, s := range segments(r, bytes.Join(f.Parts, nil)) {
					if arrives[s]--; arrives[s] < 0 {
						r.Fatalf("%+v comes too often, or was never sent", s)
					}
				}
			}
			sent = sent[n:]
		}
		for s, n := range arrives {
			if n > 0 {
				r.Errorf("seq %d is missing", s.seq)
			}
		}
	})
}

// A large frame that is not disturbed arrives as one.
func TestWhole(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	frame := rapid.Custom(func(t *rapid.T) []byte { f, _ := large(t, mac(2), mac(1)); return f }).Example(3)
	_, packets := w.seal(1, frame)
	got, _, _ := w.nodes[addr(2)].NewOpener().Open(addr(1), bytes.Join(packets, nil), len(packets[0]))
	if len(got) != 1 {
		t.Errorf("%d frames", len(got))
	}
}

// FuzzOpen has a node take anything from a peer.
func FuzzOpen(f *testing.F) {
	w := newWorld(f)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	_, packets := w.seal(1, plain(mac(2), mac(1), "hello"))
	f.Add(packets[0], 1400)
	f.Add(w.log[0], 68)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		w.nodes[addr(2)].NewOpener().Open(addr(1), data, size)
	})
}

// FuzzPieces has a node take anything that another has sealed, and seal anything.
func FuzzPieces(f *testing.F) {
	w := newWorld(f)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	frame := rapid.Custom(func(t *rapid.T) []byte { f, _ := large(t, mac(2), mac(1)); return f }).Example(3)
	s := w.nodes[addr(1)].NewSealer()
	s.Begin(vni, frame)
	s.p.index = 0
	head := make([]byte, pieceHeader)
	s.p.put(head)
	f.Add(append(head, frame[VnetHeader:VnetHeader+100]...), 50)
	f.Add(frame, 1)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		s := w.nodes[addr(1)].NewSealer()
		s.Begin(vni, text)
		left := 10000
		drain(s, func(netip.Addr, []byte, int) {
			if left--; left < 0 {
				t.Fatal("there is no end of packets")
			}
		})
		o := w.nodes[addr(2)].NewOpener()
		if len(text) < pieceHeader {
			return
		}
		k := &sessionKey{}
		for i, part := range [][]byte{text, text, text[:max(pieceHeader, min(len(text), cut))]} {
			o.piece(header{vni: vni, counter: uint64(i)}, k, slices.Clone(part))
		}
		o.end()
		o.finish()
		for _, f := range o.frames {
			if len(f.Parts) < 2 || len(f.Parts[0]) != VnetHeader || len(f.Parts[1]) < ethernet {
				t.Fatal("a frame that the kernel would not take")
			}
		}
	})
}
