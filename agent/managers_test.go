package agent

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

func peers(addrs ...string) []swarm.Peer {
	var list []swarm.Peer
	for _, a := range addrs {
		list = append(list, swarm.Peer{Addr: a})
	}
	return list
}

// picks counts what is picked at evenly spread luck.
func picks(m *Managers, prefer, exclude string) map[string]int {
	const n = 1000
	i := 0
	m.random = func() float64 { i++; return float64(i%n) / n }
	got := map[string]int{}
	for range n {
		got[m.Pick(prefer, exclude)]++
	}
	return got
}

func TestPick(t *testing.T) {
	if m := NewManagers(nil); m.Pick("a", "") != "" {
		t.Error("none is known, and one is picked")
	}
	m := NewManagers(peers("a", "b", "c"))
	if got := picks(m, "", ""); got["a"] < 330 || got["b"] < 330 || got["c"] < 330 {
		t.Errorf("equal ones: %v", got)
	}
	m.Failed("a")
	if m.Pick("", "") == "a" {
		t.Error("one that failed is picked at once again")
	}
	m.Served("b")
	if got := picks(m, "", ""); got["a"] > 70 || got["a"] == 0 || got["b"] < 450 {
		t.Errorf("after a failure of a: %v", got)
	}
	m.Served("a")
	if got := picks(m, "", "b"); got["b"] != 0 || got["a"] != 500 {
		t.Errorf("without b: %v", got)
	}
	if got := picks(m, "c", ""); got["c"] != 1000 {
		t.Errorf("c preferred: %v", got)
	}
	m.Failed("c")
	if got := picks(m, "c", ""); got["c"] != 1000 {
		t.Errorf("c preferred after one failure: %v", got)
	}
	m.Failed("c")
	m.Served("a")
	if got := picks(m, "c", ""); got["c"] > 20 {
		t.Errorf("c preferred after two failures: %v", got)
	}
	if got := picks(m, "d", ""); got["d"] != 0 {
		t.Errorf("an unknown one preferred: %v", got)
	}
	m.Set(nil)
	if len(m.List()) != 3 {
		t.Error("an empty list was taken")
	}
	m.Set([]Manager{{Peer: swarm.Peer{Addr: "c"}, Weight: 10}, {Peer: swarm.Peer{Addr: "d"}, Weight: 10}, {Peer: swarm.Peer{Addr: "d"}}, {}})
	if got := picks(m, "", ""); len(m.List()) != 2 || got["c"] > 20 || got["d"] < 980 {
		t.Errorf("a new list keeps what is known of c: %v, %v", m.List(), got)
	}
}

// Whatever happens, an address that is not excluded is picked while there is one,
// and each is picked some time.
func TestPickAlwaysFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addrs := []string{"a", "b", "c", "d"}[:rapid.IntRange(1, 4).Draw(t, "count")]
		m := NewManagers(peers(addrs...))
		for range rapid.IntRange(0, 30).Draw(t, "events") {
			addr := rapid.SampledFrom(addrs).Draw(t, "addr")
			if rapid.Bool().Draw(t, "served") {
				m.Served(addr)
			} else {
				m.Failed(addr)
			}
		}
		exclude := rapid.SampledFrom(append(addrs, "")).Draw(t, "exclude")
		if served := rapid.SampledFrom(addrs).Draw(t, "last"); len(addrs) > 1 {
			m.Served(served) // the search is over; another one begins
		}
		got := map[string]bool{}
		for i := range 100_000 {
			m.random = func() float64 { return float64(i) / 100_000 }
			got[m.Pick("", exclude)] = true
		}
		for _, a := range addrs {
			if got[a] == (a == exclude) && (a != exclude || len(addrs) > 0) {
				t.Fatalf("of %v without %q, %v are picked", addrs, exclude, got)
			}
		}
		if got[""] != (len(addrs) == 1 && exclude == addrs[0]) {
			t.Fatalf("of %v without %q, nobody is picked", addrs, exclude)
		}
	})
}

// While one after the other fails, each is tried once before any is again: where
// most are dead, the one that lives is found.
func TestPickSweeps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addrs := []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(1, 5).Draw(t, "count")]
		m := NewManagers(peers(addrs...))
		m.random = func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "luck") }
		exclude := rapid.SampledFrom(append(addrs, "")).Draw(t, "exclude")
		want := len(addrs)
		if exclude != "" {
			want--
		}
		for range 3 {
			seen := map[string]bool{}
			for range want {
				addr := m.Pick("", exclude)
				if addr == "" || addr == exclude || seen[addr] {
					t.Fatalf("%q after %v of %v without %q", addr, seen, addrs, exclude)
				}
				seen[addr] = true
				m.Failed(addr)
			}
		}
	})
}
