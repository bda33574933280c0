package crypt

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// batches has a sealer take frames one after the other, and returns how many packets
// it gave at once, each time.
func batches(s *Sealer, frames ...[]byte) (counts []int) {
	count := func(_ netip.Addr, data []byte, size int) { counts = append(counts, (len(data)+size-1)/size) }
	for _, f := range frames {
		s.Begin(vni, f)
		for to, data, size, ok := s.Next(); ok; to, data, size, ok = s.Next() {
			count(to, data, size)
		}
	}
	drain(s, count)
	return counts
}

// What goes at once is as much as the kernel takes, and no more.
func TestBatches(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 3; i++ {
		w.start(i, config(i, 3, 1, 1))
	}
	w.settle()
	to := func(node, length int) []byte { return plain(mac(node), mac(1), strings.Repeat("x", length)) }
	large := rapid.Custom(func(t *rapid.T) []byte { f, _ := large(t, mac(2), mac(1)); return f }).Example(3)
	pieces := batches(w.nodes[addr(1)].NewSealer(), large)
	for _, c := range []struct {
		frames [][]byte
		want   []int
	}{
		{nil, nil},
		{[][]byte{to(2, 50)}, []int{1}},
		{slices.Repeat([][]byte{to(2, 50)}, 65), []int{64, 1}},
		{slices.Repeat([][]byte{to(2, 1300)}, 50), []int{48, 2}},
		{[][]byte{to(2, 50), to(2, 50), to(3, 50), to(2, 50)}, []int{2, 1, 1}},
		{[][]byte{to(2, 50), to(2, 40), to(2, 40), to(2, 40)}, []int{2, 2}}, // a shorter one is the last
		{[][]byte{to(2, 50), to(2, 60), to(2, 60)}, []int{1, 2}},
		{[][]byte{to(2, 50), {}, to(9, 50), to(2, 50)}, []int{2}},
		{[][]byte{to(2, 50), large, to(2, 50)}, slices.Concat([]int{1}, pieces, []int{1})}, // a frame in pieces goes by itself
	} {
		if got := batches(w.nodes[addr(1)].NewSealer(), c.frames...); !slices.Equal(got, c.want) {
			t.Errorf("%d frames go as %v, not %v", len(c.frames), got, c.want)
		}
	}
}

// Whatever goes together arrives, in order, at those whom it is for.
func TestBatchesArrive(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 3; i++ {
		w.start(i, config(i, 3, 1, 1))
	}
	w.settle()
	s := w.nodes[addr(1)].NewSealer()
	rapid.Check(t, func(t *rapid.T) {
		sent, got := map[netip.Addr][][]byte{}, map[netip.Addr][][]byte{}
		arrive := func(to netip.Addr, data []byte, size int) {
			if len(data) > maxBatch || len(data) > maxPieces*size || len(data) == 0 {
				t.Fatalf("the kernel would not take %d bytes of %d", len(data), size)
			}
			frames, _, _ := w.nodes[to].NewOpener().Open(addr(1), data, size)
			for _, f := range frames {
				got[to] = append(got[to], bytes.Join(f.Parts[1:], nil))
			}
		}
		for i := range rapid.IntRange(0, 200).Draw(t, "frames") {
			node := rapid.IntRange(2, 3).Draw(t, "node")
			length := rapid.SampledFrom([]int{0, 52, 53, 1000, 1300}).Draw(t, "length")
			f := plain(mac(node), mac(1), fmt.Sprint(i, strings.Repeat("x", length)))
			sent[addr(node)] = append(sent[addr(node)], f[VnetHeader:])
			s.Begin(vni, slices.Clone(f))
			for to, data, size, ok := s.Next(); ok; to, data, size, ok = s.Next() {
				arrive(to, data, size)
			}
			if rapid.Bool().Draw(t, "nothing follows soon") {
				drain(s, arrive)
			}
		}
		drain(s, arrive)
		for to := range sent {
			if !slices.EqualFunc(got[to], sent[to], bytes.Equal) {
				t.Fatalf("of %d frames for %s %d arrived, or others", len(sent[to]), to, len(got[to]))
			}
		}
	})
}

// What a sealer has returned stays as it is while it returns Kept-1 others.
func TestBatchesKept(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	s := w.nodes[addr(1)].NewSealer()
	var kept, copies [][]byte
	for i := range 3 * Kept {
		s.Begin(vni, plain(mac(2), mac(1), strings.Repeat("x", 50+i)))
		if _, _, _, ok := s.Next(); ok {
			t.Fatal("it is not kept back")
		}
		_, data, _, _ := s.Flush()
		kept, copies = append(kept, data), append(copies, slices.Clone(data))
		for j := max(0, i-Kept+1); j <= i; j++ {
			if !bytes.Equal(kept[j], copies[j]) {
				t.Fatalf("%d has changed after %d others", j, i-j)
			}
		}
	}
}
