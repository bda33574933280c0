package linux

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/network"
)

// A client stays where it is as long as its task does; shares are fair.
func TestSpread(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(2, 40).Draw(r, "tasks")
		var all []netip.Addr
		for i := range n {
			all = append(all, netip.AddrFrom4([4]byte{10, 0, byte(i >> 4), byte(rapid.IntRange(16*(i&15), 16*(i&15)+15).Draw(r, "last"))}))
		}
		slices.SortFunc(all, netip.Addr.Compare)
		before := spread(nil, all, network.BalanceClient)
		share := map[netip.Addr]int{}
		for _, a := range before {
			share[a]++
		}
		for _, a := range all {
			if fair := len(before) / n; share[a] < fair/3 || share[a] > 3*fair {
				r.Fatalf("%s has %d of %d, of %d tasks", a, share[a], len(before), n)
			}
		}
		i := rapid.IntRange(0, n-1).Draw(r, "gone")
		gone := all[i]
		after := spread(nil, slices.Delete(slices.Clone(all), i, i+1), network.BalanceClient)
		if n == 2 {
			return // one needs no table
		}
		for j, a := range before {
			if a != gone && after[j] != a {
				r.Fatalf("%s went and bucket %d moved from %s to %s", gone, j, a, after[j])
			}
		}
	})
	one := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	if !slices.Equal(spread(nil, one, network.BalanceClient), one) || len(spread(nil, nil, network.BalanceClient)) != 0 {
		t.Error("one task, or none")
	}
}

// With random numbers each task has one, and keeps it where it can.
func TestKeepPlaces(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		draw := func(what string) []netip.Addr {
			m := map[netip.Addr]bool{}
			for _, n := range rapid.SliceOfN(rapid.ByteRange(1, 30), 0, 20).Draw(r, what) {
				m[netip.AddrFrom4([4]byte{10, 0, 0, n})] = true
			}
			return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
		}
		have := keepPlaces(nil, draw("first"))
		want := draw("then")
		got := keepPlaces(have, want)
		sorted := slices.SortedFunc(slices.Values(got), netip.Addr.Compare)
		if !slices.Equal(sorted, want) {
			r.Fatalf("%v is not made of %v", got, want)
		}
		for i, a := range have {
			if i < len(got) && got[i] != a && slices.Contains(want, a) {
				r.Fatalf("%s has left %d: %v, then %v", a, i, have, got)
			}
		}
	})
}

// BenchmarkSpread makes the table for affinity with 1,000 tasks.
func BenchmarkSpread(b *testing.B) {
	var all []netip.Addr
	for i := range 1000 {
		all = append(all, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	for b.Loop() {
		spread(nil, all, network.BalanceClient)
	}
}

// What a task answers from depends on where the client is.
func TestMeshBoxOf(t *testing.T) {
	p := &Plane{}
	s := meshConfig(1).Sandboxes["t"]
	b, ok := p.meshBoxOf(s, "ing")
	if !ok || b.device != "eth0" || !b.way4 || b.way6 || len(b.answers) != 2 {
		t.Fatalf("%+v, %v", b, ok)
	}
	if b.answers[0].to != netip.MustParsePrefix("172.18.0.0/16") || b.answers[1].to != netip.MustParsePrefix("0.0.0.0/0") {
		t.Errorf("answers %v: the nearest is not first", b.answers)
	}
	if l := b.marks(); len(l) != 1 || l[0].value&^l[0].mask != 0 || l[0].value == 0 {
		t.Errorf("marks %#x", l)
	}
	more := *s
	more.Interfaces = slices.Clone(s.Interfaces)
	more.Interfaces[0].Routes = pfx("10.9.0.0/24", "fd0b::/64")
	if b, _ := p.meshBoxOf(&more, "ing"); len(b.marks()) != 2 || b.marks()[0] == b.marks()[1] || !slices.Equal(b.subnets, pfx("10.0.0.0/24", "fd0a::/64", "10.9.0.0/24", "fd0b::/64")) {
		t.Errorf("of two subnets: marks %#x, %v", b.marks(), b.subnets)
	}
	if _, ok := p.meshBoxOf(s, "other"); ok {
		t.Error("it is in no such network")
	}
}

// BenchmarkMeshPort1000 takes one task of 1,000 out of a port and puts it back.
func BenchmarkMeshPort1000(b *testing.B) {
	w := newMeshWorld(b)
	c := w.config[3]
	k := network.MeshKey{Protocol: network.TCP, Port: 8040}
	full := &network.MeshPort{MeshKey: k, Target: 80}
	for i := range 1000 {
		full.Backends = append(full.Backends, netip.AddrFrom4([4]byte{10, 0, byte(1 + i>>8), byte(i)}))
	}
	less := *full
	less.Backends = full.Backends[1:]
	c.MeshPorts[k] = full
	w.ok(w.planes[3].Set(b.Context(), c))
	other := c.Clone()
	other.MeshPorts[k] = &less
	for i := 0; b.Loop(); i++ {
		w.ok(w.planes[3].Set(b.Context(), []*network.Config{other, c}[i%2]))
	}
}
