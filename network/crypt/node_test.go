package crypt

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

const vni = 4097

// world has nodes that hear each other, and the time.
type world struct {
	t     testing.TB
	now   time.Time
	nodes map[netip.Addr]*Node
	// lose says which hellos are lost; nil: none.
	lose func(Packet) bool
	log  [][]byte // packets that were sent
}

func newWorld(t testing.TB) *world {
	return &world{t: t, now: time.Unix(1, 0), nodes: map[netip.Addr]*Node{}}
}

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(i)}) }
func mac(i int) MAC         { return MAC{2, 0x42, 10, 0, 1, byte(i)} }

func key(id uint32) Key {
	k := Key{ID: id}
	copy(k.Secret[:], bytes.Repeat([]byte{byte(id)}, KeySize))
	return k
}

// config is that of node i, of n that are all in one network.
func config(i, n int, send uint32, ids ...uint32) Config {
	c := Config{Local: addr(i), Send: send, Networks: map[uint32]map[MAC]netip.Addr{vni: {}}}
	for _, id := range ids {
		c.Keys = append(c.Keys, key(id))
	}
	for j := 1; j <= n; j++ {
		if j != i {
			c.Networks[vni][mac(j)] = addr(j)
		}
	}
	return c
}

// start starts a node, anew if there was one.
func (w *world) start(i int, c Config) *Node {
	w.t.Helper()
	n := NewNode(func() time.Time { return w.now })
	w.nodes[addr(i)] = n
	w.ok(n.Set(c))
	return n
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// settle lets the nodes talk until nobody has to say anything for some time.
func (w *world) settle() {
	w.t.Helper()
	for range 100 {
		type sent struct {
			from netip.Addr
			Packet
		}
		var queue []sent
		for a, n := range w.nodes {
			out, _ := n.Tick()
			for _, p := range out {
				queue = append(queue, sent{a, p})
			}
		}
		for steps := 0; len(queue) > 0; steps++ {
			if steps > 10000 {
				w.t.Fatal("they talk for ever")
			}
			p := queue[0]
			queue = queue[1:]
			w.log = append(w.log, slices.Clone(p.Data))
			if w.nodes[p.To] == nil || w.lose != nil && w.lose(p.Packet) {
				continue
			}
			_, out, _ := w.nodes[p.To].NewOpener().Open(p.from, p.Data, len(p.Data))
			for _, q := range out {
				queue = append(queue, sent{p.To, q})
			}
		}
		w.now = w.now.Add(firstPause)
	}
}

// plain is a frame of 64 bytes and the payload, as the kernel gives it.
func plain(to, from MAC, payload string) []byte {
	f := make([]byte, VnetHeader, 100)
	f = append(append(append(f, to[:]...), from[:]...), 0x88, 0xb5)
	return append(f, payload...)
}

// seal returns the packets of a frame from node i.
func (w *world) seal(i int, frame []byte) (to netip.Addr, packets [][]byte) {
	s := w.nodes[addr(i)].NewSealer()
	s.Begin(vni, frame)
	drain(s, func(a netip.Addr, data []byte, size int) {
		for to = a; len(data) > 0; data = data[min(size, len(data)):] {
			packets = append(packets, slices.Clone(data[:min(size, len(data))]))
		}
	})
	return to, packets
}

// drain takes all packets of a sealer's frames.
func drain(s *Sealer, take func(to netip.Addr, data []byte, size int)) {
	for to, data, size, ok := s.Next(); ok; to, data, size, ok = s.Next() {
		take(to, data, size)
	}
	if to, data, size, ok := s.Flush(); ok {
		take(to, data, size)
	}
}

// open has a node take a packet, and returns the frames without what is before them.
func (w *world) open(i, from int, packets ...[]byte) (frames [][]byte) {
	o := w.nodes[addr(i)].NewOpener()
	for _, p := range packets {
		got, _, _ := o.Open(addr(from), slices.Clone(p), max(len(p), 1))
		for _, f := range got {
			frames = append(frames, bytes.Join(f.Parts[1:], nil))
		}
	}
	return frames
}

// passes reports whether a frame from one node reaches another.
func (w *world) passes(from, to int) bool {
	w.t.Helper()
	f := plain(mac(to), mac(from), fmt.Sprint(from, "to", to))
	_, packets := w.seal(from, f)
	got := w.open(to, from, packets...)
	if len(got) > 0 && !bytes.Equal(got[0], f[VnetHeader:]) {
		w.t.Errorf("what arrives is not what was sent")
	}
	return len(got) == 1
}

func (w *world) drops(i int, why string) uint64 {
	return w.nodes[addr(i)].Counts().Dropped[why]
}

func TestNodes(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 3; i++ {
		w.start(i, config(i, 3, 1, 1))
	}
	if w.passes(1, 2) || w.drops(1, "no-session") != 1 {
		t.Error("it passes before they know each other")
	}
	w.settle()
	for i := 1; i <= 3; i++ {
		for j := 1; j <= 3; j++ {
			if i != j && !w.passes(i, j) {
				t.Errorf("%d to %d does not pass", i, j)
			}
		}
		if !w.nodes[addr(i)].Established() {
			t.Error(i)
		}
	}
	if _, packets := w.seal(1, plain(mac(9), mac(1), "")); packets != nil || w.drops(1, "unknown-address") != 1 {
		t.Error("a frame for nobody is sent")
	}
	if _, packets := w.seal(1, plain(MAC{255, 255, 255, 255, 255, 255}, mac(1), "")); packets != nil {
		t.Error("a frame for all is sent")
	}
}

// Nothing flows without keys, and nothing that is sent is clear text.
func TestFailsClosed(t *testing.T) {
	w := newWorld(t)
	w.start(1, config(1, 2, 0))
	w.start(2, config(2, 2, 0))
	w.settle()
	if len(w.log) > 0 || w.passes(1, 2) {
		t.Error("something is sent without keys", len(w.log))
	}
	for i := 1; i <= 2; i++ {
		w.ok(w.nodes[addr(i)].Set(config(i, 2, 1, 1)))
	}
	w.settle()
	if !w.passes(1, 2) {
		t.Error("it does not pass with keys")
	}
	f := plain(mac(2), mac(1), "what nobody else may read")
	_, packets := w.seal(1, f)
	for _, p := range append(packets, w.log...) {
		if bytes.Contains(p, []byte("nobody")) || bytes.Contains(p, f[VnetHeader:VnetHeader+6]) {
			t.Error("clear text")
		}
	}
	w.ok(w.nodes[addr(1)].Set(config(1, 2, 0)))
	if w.passes(1, 2) || w.passes(2, 1) {
		t.Error("it passes without keys")
	}
	other := config(1, 2, 1, 1)
	other.Keys[0].Secret[0]++
	w.ok(w.nodes[addr(1)].Set(other))
	w.settle()
	if w.passes(1, 2) || w.drops(2, "forged") == 0 {
		t.Error("it passes with another key")
	}
}

// Whichever node starts anew, and whatever is lost, they find each other again.
func TestStartsAnew(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	_, old := w.seal(1, plain(mac(2), mac(1), "old"))
	lost := 0
	for _, who := range []int{1, 2, 2, 1} {
		w.lose = func(Packet) bool { lost++; return lost%3 != 0 }
		w.start(who, config(who, 2, 1, 1))
		w.settle()
		w.lose = nil
		w.settle()
		if !w.passes(1, 2) || !w.passes(2, 1) {
			t.Fatalf("after %d has started anew nothing passes", who)
		}
	}
	if got := w.open(2, 1, old...); got != nil {
		t.Error("what was sent before the start is accepted after it")
	}
	// What only one knows to have happened the other finds out by what it can't open.
	n := w.start(2, config(2, 2, 1, 1))
	n.mu.Lock()
	for _, p := range n.peers {
		p.due = w.now.Add(time.Hour)
	}
	n.mu.Unlock()
	w.settle()
	if w.passes(1, 2) {
		t.Error("it passes to a node that knows nobody")
	}
	w.settle()
	if !w.passes(1, 2) {
		t.Error("it does not find out")
	}
}

// Hellos that were recorded change nothing when they come again.
func TestHellosReplayed(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	w.start(1, config(1, 2, 1, 1))
	w.settle()
	said := slices.Clone(w.log)
	for _, p := range said {
		for i := 1; i <= 2; i++ {
			w.open(i, 3-i, p)
			w.open(i, i, p)
			w.open(i, 7, p)
		}
	}
	for i := 1; i <= 2; i++ {
		if !w.passes(i, 3-i) {
			t.Errorf("%d is confused", i)
		}
	}
	before := len(w.log)
	out := 0
	o := w.nodes[addr(2)].NewOpener()
	for range 1000 {
		_, reply, _ := o.Open(addr(1), slices.Clone(said[0]), len(said[0]))
		out += len(reply)
	}
	if out > maxReplies {
		t.Errorf("%d replies in no time, %d", out, before)
	}
}

// Packets come once, whoever sends them again, late ones and those overtaken too.
func TestReplay(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 3; i++ {
		w.start(i, config(i, 3, 1, 1))
	}
	w.settle()
	var all [][]byte
	for i := range 100 {
		_, p := w.seal(1, plain(mac(2), mac(1), fmt.Sprint(i)))
		all = append(all, p...)
	}
	slices.Reverse(all)
	if got := w.open(2, 1, all...); len(got) != 100 {
		t.Errorf("%d arrive of 100 in another order", len(got))
	}
	if got := w.open(2, 1, all...); len(got) != 0 || w.drops(2, "replayed") != 100 {
		t.Errorf("%d arrive again", len(got))
	}
	for _, i := range []int{1, 2, 3} {
		if got := w.open(i, 3, all...); len(got) != 0 {
			t.Errorf("%d are accepted from another, by %d", len(got), i)
		}
	}
	if got := w.open(3, 1, all...); len(got) != 0 {
		t.Error("they are accepted by another")
	}
	if w.open(2, 9, all...) != nil || w.drops(2, "unknown-node") == 0 {
		t.Error("they are accepted from a stranger")
	}
}

// Any bit that differs has a packet dropped, and any length.
func TestForged(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	_, packets := w.seal(1, plain(mac(2), mac(1), "hello"))
	p := packets[0]
	for bit := range len(p) * 8 {
		q := slices.Clone(p)
		q[bit/8] ^= 1 << (bit % 8)
		if w.open(2, 1, q) != nil {
			t.Fatalf("bit %d does not matter", bit)
		}
	}
	for n := range p {
		if w.open(2, 1, p[:n]) != nil {
			t.Fatalf("%d bytes are enough", n)
		}
	}
	if w.open(2, 1, append(slices.Clone(p), 0)) != nil {
		t.Error("a byte more does not matter")
	}
	if len(w.open(2, 1, p)) != 1 {
		t.Error("the true one is not accepted after all that")
	}
}

// A key is known to all before it is sent with: nothing is lost, in whichever order
// the nodes hear of each step.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	both := func() {
		t.Helper()
		for i := 1; i <= 2; i++ {
			if !w.passes(i, 3-i) {
				t.Errorf("%d does not reach the other", i)
			}
		}
	}
	for _, step := range []struct {
		send uint32
		ids  []uint32
	}{{1, []uint32{1, 2}}, {2, []uint32{1, 2}}, {2, []uint32{2}}, {2, []uint32{2, 3}}, {3, []uint32{2, 3}}, {3, []uint32{3}}} {
		late := [][]byte{}
		for i := 1; i <= 2; i++ {
			_, p := w.seal(1, plain(mac(2), mac(1), "under way"))
			late = append(late, p...)
			w.ok(w.nodes[addr(i)].Set(config(i, 2, step.send, step.ids...)))
			both()
		}
		if got := w.open(2, 1, late...); len(got) != 2 && len(step.ids) > 1 {
			t.Errorf("%v: %d of 2 that were under way arrive", step, len(got))
		}
		both()
	}
}

// A key, a peer or an address that was gone comes back with numbers that nobody
// has seen: no counter comes twice under a key.
func TestComesBack(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 2, 1, 2))
	}
	w.settle()
	seen := map[string]bool{}
	check := func(what string) {
		t.Helper()
		w.settle()
		if !w.passes(1, 2) {
			t.Errorf("%s: nothing passes", what)
		}
		n := w.nodes[addr(1)]
		for a, p := range n.peers {
			for _, k := range p.session.Load().keys {
				var nonce [nonceSize]byte
				sealed := string(k.send.Seal(nil, nonce[:], []byte("which key"), nil))
				if what != "" && seen[sealed] {
					t.Errorf("%s: key %d with %s is one that was used", what, k.id, a)
				}
				seen[sealed] = true
			}
		}
	}
	check("")
	_, old := w.seal(1, plain(mac(2), mac(1), "old"))
	all := func(c func(i int) Config) {
		for i := 1; i <= 2; i++ {
			w.ok(w.nodes[addr(i)].Set(c(i)))
		}
	}
	all(func(i int) Config { return config(i, 2, 1, 1) })
	all(func(i int) Config { return config(i, 2, 2, 1, 2) })
	check("a key")
	all(func(i int) Config { return config(i, 1, 2, 1, 2) })
	all(func(i int) Config { return config(i, 2, 2, 1, 2) })
	check("a peer")
	moved := config(1, 2, 2, 1, 2)
	moved.Local = addr(9)
	w.ok(w.nodes[addr(1)].Set(moved))
	w.ok(w.nodes[addr(1)].Set(config(1, 2, 2, 1, 2)))
	check("an address")
	if w.open(2, 1, old...) != nil {
		t.Error("what was sent before is accepted")
	}
}

func TestWindow(t *testing.T) {
	var w window
	for _, c := range []struct {
		counter uint64
		fresh   bool
	}{
		{0, false}, {1, true}, {1, false}, {3, true}, {2, true}, {2, false}, {windowSize + 3, true}, {3, false}, {4, true}, {4, false},
		{5 * windowSize, true}, {4*windowSize + 1, true}, {4*windowSize + 1, false}, {4 * windowSize, false}, {1 << 63, true}, {5 * windowSize, false}, {1<<64 - 1, true}, {1<<64 - 1, false},
	} {
		if got := w.fresh(c.counter); got != c.fresh {
			t.Errorf("%d is fresh: %t", c.counter, got)
		}
		if c.fresh {
			w.note(c.counter)
		}
	}
}

// FuzzWindow compares with a set of all.
func FuzzWindow(f *testing.F) {
	f.Add([]byte{1, 2, 3, 200, 4, 255, 255, 9})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var w window
		seen := map[uint64]bool{}
		at := uint64(windowSize)
		for _, s := range steps {
			c := at + uint64(s) - 100
			if s > 200 {
				c = at + uint64(s-200)*100
			}
			want := !seen[c] && (w.top < windowSize || c > w.top-windowSize)
			if got := w.fresh(c); got != want {
				t.Fatalf("%d, top %d: fresh %t", c, w.top, got)
			}
			if want {
				w.note(c)
				seen[c] = true
			}
			at = w.top
		}
	})
}

// Packets cost no memory.
func TestAllocations(t *testing.T) {
	w := newWorld(t)
	for i := 1; i <= 2; i++ {
		w.start(i, config(i, 2, 1, 1))
	}
	w.settle()
	s, o := w.nodes[addr(1)].NewSealer(), w.nodes[addr(2)].NewOpener()
	frame := plain(mac(2), mac(1), "hello")
	arrives := func(_ netip.Addr, data []byte, size int) {
		if frames, _, _ := o.Open(addr(1), data, size); len(frames) != 1 {
			t.Fatal(len(frames))
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		s.Begin(vni, frame)
		drain(s, arrives)
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}
