package dispatcher

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

func TestWatchdog(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	g := newWatchdog(15 * time.Second)
	due := func(after time.Duration) (late, lost int, next time.Duration) {
		a, b, next := g.due(start.Add(after))
		return len(a), len(b), next
	}
	g.see("a", swarm.NodeStateUnknown, start)
	g.see("b", swarm.NodeStateUnknown, start)
	g.see("b", swarm.NodeStateReady, start.Add(time.Second))
	if late, _, next := due(14 * time.Second); late != 0 || next != time.Second {
		t.Errorf("before the grace period ends: %d late, next in %v", late, next)
	}
	if late, _, _ := due(15 * time.Second); late != 1 {
		t.Errorf("after the grace period: %d late, want a alone", late)
	}
	g.see("a", swarm.NodeStateDown, start.Add(15*time.Second))
	g.see("a", swarm.NodeStateDown, start.Add(time.Hour)) // written again: it is down since the first
	g.see("gone", swarm.NodeStateDown, start)
	g.forget("gone")
	if _, lost, _ := due(24 * time.Hour); lost != 0 {
		t.Error("orphaned too early")
	}
	if _, lost, _ := due(24*time.Hour + 15*time.Second); lost != 1 {
		t.Error("not orphaned after a day")
	}
	if _, lost, _ := due(48 * time.Hour); lost != 0 {
		t.Error("orphaned twice")
	}
}

func TestAdvances(t *testing.T) {
	for _, c := range []struct {
		from, to swarm.TaskStatus
		want     bool
	}{
		{swarm.TaskStatus{State: swarm.TaskStateAssigned}, swarm.TaskStatus{State: swarm.TaskStateRunning}, true},
		{swarm.TaskStatus{State: swarm.TaskStateRunning}, swarm.TaskStatus{State: swarm.TaskStateStarting}, false},
		{swarm.TaskStatus{State: swarm.TaskStatePreparing}, swarm.TaskStatus{State: swarm.TaskStatePreparing}, false},
		{swarm.TaskStatus{State: swarm.TaskStatePreparing}, swarm.TaskStatus{State: swarm.TaskStatePreparing, Err: "busy"}, true},
		{swarm.TaskStatus{State: swarm.TaskStateComplete}, swarm.TaskStatus{State: swarm.TaskStateFailed}, false},
		{swarm.TaskStatus{State: swarm.TaskStateOrphaned}, swarm.TaskStatus{State: swarm.TaskStateRunning}, false},
	} {
		if got := advances(&c.from, &c.to); got != c.want {
			t.Errorf("%s %q to %s %q: %v", c.from.State, c.from.Err, c.to.State, c.to.Err, got)
		}
	}
}

func TestRegisterLimit(t *testing.T) {
	r, now := &record{}, time.Now()
	for range registerLimit {
		if !r.admit(now) {
			t.Fatal("refused too early")
		}
	}
	if r.admit(now.Add(registerWindow / 2)) {
		t.Error("not refused")
	}
	if !r.admit(now.Add(registerWindow)) {
		t.Error("refused for ever")
	}
}
