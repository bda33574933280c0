package dispatcher

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

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
