package presence

import (
	"maps"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func node(id, manager string, s swarm.NodeState) *api.Node {
	n := &api.Node{Role: swarm.NodeRoleWorker, Session: api.NodeSession{ID: id + "@" + manager, Manager: manager}}
	n.ID, n.Status.State = id, s
	return n
}

func TestWatchdog(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	g := newWatchdog(15 * time.Second)
	alive := map[string]bool{"m1": true, "m2": true, "m3": true}
	look := func(d time.Duration) { g.managers(func(n *api.Node) bool { return alive[n.ID] }, at(d)) }
	want := func(d time.Duration, want map[string]verdict) {
		t.Helper()
		if got := g.due(at(d)); !maps.Equal(got, want) {
			t.Errorf("after %v: %v; want %v", d, got, want)
		}
	}
	for _, id := range []string{"m1", "m2", "m3"} {
		m := node(id, id, swarm.NodeStateReady)
		m.Role, m.Session.Paused = swarm.NodeRoleManager, id == "m3"
		g.see(m, start, start)
	}
	for id, m := range map[string]string{"a": "m1", "b": "m2", "c": "m2", "d": "m3"} {
		g.see(node(id, m, swarm.NodeStateReady), start, start)
	}
	g.see(node("new", "", swarm.NodeStateUnknown), start, start)
	look(0)
	want(10*time.Second, map[string]verdict{})
	want(15*time.Second, map[string]verdict{"new": dead})
	g.forget("new")

	alive["m2"], alive["m3"] = false, false
	look(time.Minute)
	want(time.Minute+900*time.Millisecond, map[string]verdict{})
	want(time.Minute+time.Second, map[string]verdict{"m2": probe})
	want(time.Minute+2*time.Second, map[string]verdict{"m2": unknown, "m3": unknown, "b": unknown, "c": unknown, "d": unknown})
	g.see(node("b", "m1", swarm.NodeStateReady), at(time.Minute+3*time.Second), at(time.Minute+3*time.Second)) // it moved over
	alive["m3"] = true
	look(time.Minute + 4*time.Second)
	want(time.Minute+14*time.Second, map[string]verdict{"m2": unknown, "c": unknown})
	want(time.Minute+15*time.Second, map[string]verdict{"m2": dead, "c": dead})
	gone := node("c", "m2", swarm.NodeStateDown)
	gone.DownSince = at(time.Minute + 15*time.Second)
	g.see(gone, at(time.Minute+15*time.Second), at(time.Minute+15*time.Second))
	want(2*time.Minute, map[string]verdict{"m2": dead})
	want(time.Minute+15*time.Second+orphanAfter, map[string]verdict{"m2": dead, "c": orphan})
	want(time.Minute+15*time.Second+2*orphanAfter, map[string]verdict{"m2": dead})

	// The clock is set on by two days: the node is down since then all the same. A
	// leader that finds it so does not know better.
	later := node("d", "m3", swarm.NodeStateDown)
	later.DownSince = at(2 * time.Minute)
	g.see(later, at(2*time.Minute), at(2*time.Minute))
	relabelled := *later
	g.see(&relabelled, at(3*time.Minute), at(48*time.Hour))
	want(time.Hour, map[string]verdict{"m2": dead})
	back := *later
	back.DownSince = at(49 * time.Hour) // and back
	g.see(&back, at(4*time.Minute), at(5*time.Minute))
	want(4*time.Minute+orphanAfter, map[string]verdict{"m2": dead, "d": orphan})

	next := newWatchdog(15 * time.Second) // leads from now on, and its clock is two days ahead
	next.see(&back, start, back.DownSince.Add(48*time.Hour))
	if got := next.due(at(observed - time.Second)); len(got) > 0 {
		t.Errorf("by a clock that is ahead: %v", got)
	}
	if got := next.due(at(observed)); got["d"] != orphan {
		t.Errorf("by a clock that is ahead, after %v: %v", observed, got)
	}

	// A manager that became a worker serves nobody.
	m1 := node("m1", "m3", swarm.NodeStateReady)
	g.see(m1, at(time.Hour), at(time.Hour))
	look(time.Hour)
	want(time.Hour+15*time.Second, map[string]verdict{"m2": dead, "a": dead, "b": dead})
}

// TestExcuse: time in which this process stood still is not held against a node.
func TestExcuse(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	g := newWatchdog(15 * time.Second)
	g.see(node("a", "gone", swarm.NodeStateUnknown), start, start)
	g.excuse(10*time.Second, start.Add(14*time.Second))
	for after, want := range map[time.Duration]int{24 * time.Second: 0, 25 * time.Second: 1} {
		if got := g.due(start.Add(after)); len(got) != want {
			t.Errorf("after %v: %v", after, got)
		}
	}
	g.see(node("b", "gone", swarm.NodeStateUnknown), start.Add(30*time.Second), start)
	g.excuse(10*time.Second, start.Add(31*time.Second)) // it began to be without a manager meanwhile
	if got := g.due(start.Add(45 * time.Second)); len(got) != 1 || got["b"] == dead {
		t.Errorf("excused for longer than it was away: %v", got)
	}
}
