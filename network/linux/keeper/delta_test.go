package keeper

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/crypt"
)

func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// someZones draws what names there may be; some are those of before.
func someZones(t *rapid.T, before map[string]*network.Zone) map[string]*network.Zone {
	all := map[string]*network.Zone{}
	for _, id := range []string{"a", "b", "c"} {
		switch rapid.IntRange(0, 2).Draw(t, "what of "+id) {
		case 0:
			continue
		case 1:
			if before[id] != nil {
				all[id] = before[id]
				continue
			}
		}
		z := &network.Zone{ID: id, Name: rapid.SampledFrom([]string{"net", "other"}).Draw(t, "name"), Names: map[string][]netip.Addr{}, Owners: map[netip.Addr]string{}}
		for i := range rapid.IntRange(0, 5).Draw(t, "names") {
			var l []netip.Addr
			for range rapid.IntRange(0, 3).Draw(t, "addresses") {
				l = append(l, address(rapid.IntRange(0, 9).Draw(t, "address")))
			}
			z.Names[fmt.Sprint("n", i)] = l
			z.Owners[address(i)] = rapid.SampledFrom([]string{"x", "y"}).Draw(t, "owner")
		}
		all[id] = z
	}
	return all
}

func sameZones(a, b map[string]*network.Zone) bool {
	return maps.EqualFunc(a, b, (*network.Zone).Equal)
}

// What is told makes the names that a keeper has those that are meant, whatever it
// had; what it had is not changed.
func TestZones(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s zonesState
		var told map[string]*network.Zone
		for range 4 {
			was := s.is
			text := fmt.Sprint(was)
			want := someZones(t, told)
			for _, d := range zonesBetween(told, want, rapid.Bool().Draw(t, "anew")) {
				s.apply(d)
			}
			if told = want; !sameZones(s.is, want) {
				t.Fatalf("%v, not %v", s.is, want)
			}
			if fmt.Sprint(was) != text {
				t.Fatal("what was there is changed")
			}
		}
	})
}

// A large network is told in parts, none of which counts before the last; a change of
// one name is one small part.
func TestZonesInParts(t *testing.T) {
	z := &network.Zone{ID: "n", Name: "net", Names: map[string][]netip.Addr{}, Owners: map[netip.Addr]string{}}
	for i := range 40000 {
		z.Names[fmt.Sprint("n", i)] = []netip.Addr{address(i)}
		z.Owners[address(i)] = fmt.Sprint("n", i)
	}
	want := map[string]*network.Zone{"n": z}
	parts := zonesBetween(nil, want, true)
	if len(parts) < 6 {
		t.Errorf("%d parts", len(parts))
	}
	var s zonesState
	for i, d := range parts {
		if whole := s.apply(d); whole != (i == len(parts)-1) {
			t.Errorf("part %d of %d: %v", i, len(parts), whole)
		}
		if s.is != nil != (i == len(parts)-1) {
			t.Errorf("part %d of %d counts", i, len(parts))
		}
	}
	if !sameZones(s.is, want) {
		t.Error("they are others")
	}
	s.apply(&zonesDelta{Anew: true, More: true}) // of a daemon that is killed
	s.abandon()
	less := *z
	less.Names = maps.Clone(z.Names)
	less.Names["n7"] = nil
	delete(less.Names, "n8")
	change := zonesBetween(want, map[string]*network.Zone{"n": &less}, false)
	if len(change) != 1 || len(change[0].Zones) != 1 || len(change[0].Zones[0].Put)+len(change[0].Zones[0].Drop) != 2 {
		t.Fatalf("%+v", change)
	}
	s.apply(change[0])
	if !s.is["n"].Equal(&less) {
		t.Error("the change is another")
	}
	if same := zonesBetween(want, want, false); same != nil {
		t.Errorf("%+v", same)
	}
}

// Names are what was set without what the newest lack.
func TestAgreed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := someZones(t, nil)
		newest := someZones(t, set)
		if !sameZones(agreed(set, nil), set) || !sameZones(agreed(set, set), set) {
			t.Fatal("without newer ones they are others")
		}
		got := agreed(set, newest)
		for id, z := range set {
			n := newest[id]
			if n == nil && got[id] != nil || n != nil && !got[id].Equal(z.Narrowed(n)) {
				t.Fatalf("%s: %v of %v and %v", id, got[id], z, n)
			}
		}
	})
}

// What is told makes the endpoints that a keeper knows those that are meant, also in
// parts.
func TestPeers(t *testing.T) {
	mac := func(n int) crypt.MAC { return crypt.MAC{2, 0x42, 0, byte(n >> 16), byte(n >> 8), byte(n)} }
	same := func(a, b map[string]Peers) bool {
		return maps.EqualFunc(a, b, func(x, y Peers) bool { return x.VNI == y.VNI && maps.Equal(x.Nodes, y.Nodes) })
	}
	sizes, rounds := []int{-1, 0, 1, 3, 20}, 0
	rapid.Check(t, func(t *rapid.T) {
		if rounds++; rounds%50 == 0 {
			sizes = append(sizes[:5], 20000)
			defer func() { sizes = sizes[:5] }()
		}
		is, told := map[string]Peers{}, map[string]Peers{}
		for range 4 {
			want := map[string]Peers{}
			for _, id := range []string{"a", "b"} {
				n := rapid.SampledFrom(sizes).Draw(t, "endpoints")
				if n < 0 {
					continue
				}
				p := Peers{VNI: uint32(rapid.IntRange(1, 2).Draw(t, "VNI")), Nodes: map[crypt.MAC]netip.Addr{}}
				from, node := rapid.IntRange(0, 2).Draw(t, "from"), rapid.IntRange(0, 2).Draw(t, "node")
				for i := range n {
					p.Nodes[mac(from+i)] = address(node)
				}
				want[id] = p
			}
			parts := peersBetween(told, want)
			for i, d := range parts {
				applyPeers(is, d)
				if d.More == (i == len(parts)-1) {
					t.Fatalf("part %d of %d says more: %v", i, len(parts), d.More)
				}
			}
			if told = want; !same(is, want) {
				t.Fatal("they are others")
			}
			if len(peersBetween(want, want)) > 0 {
				t.Fatal("nothing has changed, and something is told")
			}
		}
	})
}

// BenchmarkZonesChange is what one endpoint that comes costs in a network of 5,000, on
// both sides: what is different, and to be told of it.
func BenchmarkZonesChange(b *testing.B) {
	z := &network.Zone{ID: "n", Name: "net", Names: map[string][]netip.Addr{}, Owners: map[netip.Addr]string{}}
	for i := range 5000 {
		z.Names[fmt.Sprint("task.", i)], z.Names[fmt.Sprint("short", i)] = []netip.Addr{address(i)}, []netip.Addr{address(i)}
		z.Owners[address(i)] = fmt.Sprint("task.", i)
	}
	more := &network.Zone{ID: "n", Name: "net", Names: maps.Clone(z.Names), Owners: maps.Clone(z.Owners)}
	more.Names["task.5000"], more.Owners[address(5000)] = []netip.Addr{address(5000)}, "task.5000"
	from, to := map[string]*network.Zone{"n": z}, map[string]*network.Zone{"n": more}
	d := zonesBetween(from, to, false)[0]
	text, err := json.Marshal(request{Zones: d})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("differ", func(b *testing.B) {
		for b.Loop() {
			zonesBetween(from, to, false)
		}
		b.ReportMetric(float64(len(text)), "B/message")
	})
	b.Run("apply", func(b *testing.B) {
		for b.Loop() {
			s := zonesState{is: from}
			s.apply(d)
		}
	})
}
