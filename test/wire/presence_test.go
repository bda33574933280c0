package wire

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent"
)

// scenario runs a test in a bubble, over so many managers.
func scenario(t *testing.T, managers int, period time.Duration, run func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { run(newWorld(t, managers, period)) })
}

func between(t *testing.T, what string, got, low, high time.Duration) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s after %v; want %v to %v", what, got, low, high)
	}
}

func TestKilledDaemonIsSeenAtOnce(t *testing.T) {
	scenario(t, 3, 5*time.Second, func(w *world) {
		b := w.worker("node")
		b.kill()
		between(w.t, "down", w.untilNode("node", swarm.NodeStateDown), 900*time.Millisecond, 1100*time.Millisecond)
		b.start()
		between(w.t, "ready again", w.untilNode("node", swarm.NodeStateReady), 0, 200*time.Millisecond)
		if n := b.fake.Starts("task-node"); n != 1 {
			w.t.Errorf("the task was started %d times", n)
		}
		if !w.node("node").DownSince.IsZero() {
			w.t.Error("a node that is back is down since", w.node("node").DownSince)
		}
	})
}

func TestSilence(t *testing.T) {
	for period, limits := range map[time.Duration][2]time.Duration{
		time.Second:     {1400 * time.Millisecond, 2600 * time.Millisecond},
		5 * time.Second: {9 * time.Second, 14600 * time.Millisecond},
	} {
		scenario(t, 3, period, func(w *world) {
			b := w.worker("node")
			w.wait(7 * time.Second)
			b.net.set(silent)
			between(w.t, "down", w.untilNode("node", swarm.NodeStateDown), limits[0], limits[1])
			b.net.set(passes)
			w.untilNode("node", swarm.NodeStateReady)
			w.wait(time.Minute)
			if s := w.node("node").Status.State; s != swarm.NodeStateReady || b.fake.Starts("task-node") != 1 {
				w.t.Errorf("a minute after the network is back the node is %s, its task was started %d times", s, b.fake.Starts("task-node"))
			}
		})
	}
}

// Neither a short silence nor a daemon that starts again moves anything.
func TestBlipsMoveNothing(t *testing.T) {
	scenario(t, 3, 5*time.Second, func(w *world) {
		b := w.worker("node")
		for range 10 {
			b.net.set(silent)
			w.wait(5 * time.Second)
			b.net.set(passes)
			w.wait(20*time.Second + 700*time.Millisecond)
		}
		for range 3 {
			b.stop(nil)
			w.wait(8 * time.Second)
			b.start()
			w.wait(20 * time.Second)
		}
		// Connections break, and the agent comes back at once.
		for range 5 {
			b.net.set(refused)
			w.wait(300 * time.Millisecond)
			b.net.set(passes)
			w.wait(20 * time.Second)
		}
		w.stayed("node")
		if b.fake.Starts("task-node") != 1 {
			w.t.Errorf("the task was started %d times", b.fake.Starts("task-node"))
		}
	})
}

func TestLeave(t *testing.T) {
	scenario(t, 1, 5*time.Second, func(w *world) {
		b := w.worker("node")
		b.stop(agent.ErrLeaving)
		between(w.t, "down", w.untilNode("node", swarm.NodeStateDown), 0, 10*time.Millisecond)
		if m := w.node("node").Status.Message; m != "the node has left the swarm" {
			w.t.Errorf("message = %q", m)
		}
	})
}

// Nodes of a manager that dies move over, and nothing happens to them.
func TestManagerDies(t *testing.T) {
	scenario(t, 3, 5*time.Second, func(w *world) {
		var nodes []*box
		for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
			nodes = append(nodes, w.worker(id))
		}
		for range 2 {
			victim := w.managers[0]
			for _, l := range w.managers {
				if l.alive() && l.id == w.node("a").Session.Manager {
					victim = l
				}
			}
			victim.kill()
			w.wait(700 * time.Millisecond)
			for _, b := range nodes {
				if m := w.node(b.id).Session.Manager; m == victim.id {
					w.t.Errorf("node %s is still with the dead manager", b.id)
				}
			}
			// A status gets through to where the node is now.
			w.wait(time.Minute)
		}
		for _, b := range nodes {
			w.stayed(b.id)
			if b.fake.Starts("task-"+b.id) != 1 {
				w.t.Errorf("the task of %s was started %d times", b.id, b.fake.Starts("task-"+b.id))
			}
		}
		nodes[0].fake.Kill("task-a", 7)
		w.wait(time.Second)
		if s := w.task("task-a").Status; s.State != swarm.TaskStateFailed {
			w.t.Errorf("after two managers died, a task's end is not heard of: %+v", s)
		}
	})
}

// A manager that dies is itself a node, and its fellows see to that: at once if
// its host says that nothing listens, else after the grace period.
func TestManagersOwnNode(t *testing.T) {
	scenario(t, 3, 5*time.Second, func(w *world) {
		for _, l := range w.managers {
			b := w.box(l.id, l.addr)
			defer b.kill()
			w.wait(time.Minute)
			if m := w.node(l.id).Session.Manager; m != l.id {
				w.t.Errorf("%s is connected to %s", l.id, m)
			}
			if l == w.managers[1] {
				b.net.set(refused)
				l.kill()
				between(w.t, "down", w.untilNode(l.id, swarm.NodeStateDown), time.Second, 1600*time.Millisecond)
			}
			if l == w.managers[2] {
				b.kill()
				l.kill()
				l.mu.Lock()
				l.silent = true
				l.mu.Unlock()
			}
		}
		between(w.t, "unknown", w.untilNode("manager2", swarm.NodeStateUnknown), 2*time.Second, 2500*time.Millisecond)
		between(w.t, "down", w.untilNode("manager2", swarm.NodeStateDown), 11*time.Second, 13*time.Second)
	})
}

// Nodes of a manager that is cut off silently find another one in time.
func TestManagerGoesSilent(t *testing.T) {
	for _, period := range []time.Duration{time.Second, 5 * time.Second} {
		scenario(t, 3, period, func(w *world) {
			var nodes []*box
			for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
				nodes = append(nodes, w.worker(id))
			}
			victim := w.managers[0]
			for _, l := range w.managers {
				if l.id == w.node("a").Session.Manager {
					victim = l
				}
			}
			victim.hush()
			w.wait(2*period + 500*time.Millisecond)
			for _, b := range nodes {
				if n := w.node(b.id); n.Session.Manager == victim.id || n.Status.State != swarm.NodeStateReady {
					w.t.Errorf("period %v: node %s is %s, with the silent manager: %v", period, b.id, n.Status.State, n.Session.Manager == victim.id)
				}
				if b.fake.Starts("task-"+b.id) != 1 {
					w.t.Errorf("the task of %s was started %d times", b.id, b.fake.Starts("task-"+b.id))
				}
			}
			victim.kill()
			victim.net.set(refused)
		})
	}
}

func TestNodeDiesWithItsManager(t *testing.T) {
	scenario(t, 2, 5*time.Second, func(w *world) {
		b := w.worker("node")
		for _, l := range w.managers {
			if l.id == w.node("node").Session.Manager {
				l.kill()
			}
		}
		b.kill()
		between(w.t, "unknown", w.untilNode("node", swarm.NodeStateUnknown), 2*time.Second, 2500*time.Millisecond)
		between(w.t, "down", w.untilNode("node", swarm.NodeStateDown), 12*time.Second, 13*time.Second)
		w.wait(23 * time.Hour)
		if s := w.task("task-node").Status.State; s != swarm.TaskStateRunning {
			w.t.Errorf("the task of a dead node is %s before its time", s)
		}
		w.wait(2 * time.Hour)
		if s := w.task("task-node").Status.State; s != swarm.TaskStateOrphaned {
			w.t.Errorf("the task of a node that is down for a day is %s", s)
		}
	})
}

// A node that does not come back after its manager started again is down.
func TestNodeDiesWhileItsManagerRestarts(t *testing.T) {
	scenario(t, 1, 5*time.Second, func(w *world) {
		b, other := w.worker("node"), w.worker("other")
		w.managers[0].kill()
		b.kill()
		w.wait(100 * time.Millisecond)
		w.managers[0].start()
		between(w.t, "down", w.untilNode("node", swarm.NodeStateDown), 14*time.Second, 15*time.Second)
		w.stayed(other.id)
	})
}

// A manager that has lost the others sends its nodes to them.
func TestManagerWithoutLeader(t *testing.T) {
	scenario(t, 2, 5*time.Second, func(w *world) {
		b := w.worker("node")
		for w.node("node").Session.Manager != "manager0" {
			b.stop(nil)
			b.start()
			w.wait(time.Second)
		}
		w.setLed(false) // for manager0
		w.wait(3 * time.Second)
		if m := w.node("node").Session.Manager; m != "manager0" {
			w.t.Errorf("an election of three seconds sent the node to %s", m)
		}
		w.wait(3 * time.Second)
		if m := w.node("node").Session.Manager; m != "manager1" {
			w.t.Errorf("the node is with %s", m)
		}
		w.stayed("node")
	})
}
