package exec_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

const (
	assigned  = swarm.TaskStateAssigned
	accepted  = swarm.TaskStateAccepted
	preparing = swarm.TaskStatePreparing
	ready     = swarm.TaskStateReady
	starting  = swarm.TaskStateStarting
	running   = swarm.TaskStateRunning
	complete  = swarm.TaskStateComplete
	shutdown  = swarm.TaskStateShutdown
	failed    = swarm.TaskStateFailed
	rejected  = swarm.TaskStateRejected
	remove    = swarm.TaskStateRemove
)

func TestNext(t *testing.T) {
	for _, c := range []struct {
		state, desired swarm.TaskState
		op             exec.Operation
		to             swarm.TaskState
		message        string
	}{
		{assigned, assigned, exec.Rest, assigned, ""},
		{assigned, accepted, exec.Advance, accepted, "accepted"},
		{assigned, running, exec.Advance, accepted, "accepted"},
		{accepted, accepted, exec.Rest, accepted, ""},
		{accepted, ready, exec.Advance, preparing, "preparing"},
		{preparing, ready, exec.Prepare, preparing, ""},
		{ready, ready, exec.Rest, ready, ""},
		{ready, running, exec.Advance, starting, "starting"},
		{ready, complete, exec.Advance, starting, "starting"},
		{starting, running, exec.Start, starting, ""},
		{running, running, exec.Wait, running, ""},
		{running, complete, exec.Wait, running, ""},
		{running, ready, exec.Wait, running, ""},
		{assigned, shutdown, exec.Shutdown, assigned, ""},
		{preparing, remove, exec.Shutdown, preparing, ""},
		{running, shutdown, exec.Shutdown, running, ""},
		{failed, running, exec.Rest, failed, ""},
		{complete, remove, exec.Rest, complete, ""},
	} {
		op, s := exec.Next(swarm.TaskStatus{State: c.state}, c.desired, time.Time{})
		if op != c.op || s.State != c.to || s.Message != c.message {
			t.Errorf("%s, desired %s: %v, %s %q; want %v, %s %q", c.state, c.desired, op, s.State, s.Message, c.op, c.to, c.message)
		}
	}
}

func TestDone(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		state       swarm.TaskState
		op          exec.Operation
		err         error
		to          swarm.TaskState
		text        string
		retry, stop bool
	}{
		{preparing, exec.Prepare, nil, ready, "", false, false},
		{starting, exec.Start, nil, running, "", false, false},
		{running, exec.Wait, nil, complete, "", false, false},
		{running, exec.Shutdown, nil, shutdown, "", false, false},
		{preparing, exec.Prepare, boom, rejected, "boom", false, true},
		{preparing, exec.Prepare, fmt.Errorf("busy: %w", exec.ErrTemporary), preparing, "busy: temporary", true, false},
		{preparing, exec.Prepare, context.Canceled, preparing, "", false, false},
		{starting, exec.Start, boom, failed, "boom", false, true},
		{starting, exec.Start, exec.Rejected(errors.New("no")), rejected, "no", false, true},
		{running, exec.Wait, &exec.ExitError{Code: 7}, failed, "task: non-zero exit (7)", false, false},
		{running, exec.Wait, &exec.ExitError{Code: 137, Err: "unhealthy"}, failed, "task: non-zero exit (137): unhealthy", false, false},
		{running, exec.Shutdown, boom, running, "boom", true, false},
	} {
		out := exec.Done(swarm.TaskStatus{State: c.state}, c.op, c.err, time.Time{})
		if out.Status.State != c.to || out.Status.Err != c.text || out.Retry != c.retry || out.Stop != c.stop {
			t.Errorf("%s %v %v: %+v; want %s %q retry %v stop %v", c.state, c.op, c.err, out, c.to, c.text, c.retry, c.stop)
		}
	}
}

// Whatever happens, a state never goes back, and with an executor that answers
// a task whose end is wanted comes to it.
func TestLifeOnlyGoesForward(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		desires := []swarm.TaskState{accepted, ready, running, complete, shutdown, remove}
		errs := []error{nil, nil, nil, errors.New("boom"), exec.ErrTemporary, context.Canceled, &exec.ExitError{Code: 1}}
		s, d := swarm.TaskStatus{State: assigned}, 0
		step := func(err error) {
			before := s.State
			op, next := exec.Next(s, desires[d], time.Time{})
			if op == exec.Advance {
				s = next
			} else if op != exec.Rest {
				s = exec.Done(s, op, err, time.Time{}).Status
			}
			if api.Rank(s.State) < api.Rank(before) {
				t.Fatalf("%s after %s", s.State, before)
			}
		}
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			d = rapid.IntRange(d, len(desires)-1).Draw(t, "desired")
			step(rapid.SampledFrom(errs).Draw(t, "err"))
		}
		d = len(desires) - 1
		step(nil)
		if !api.Final(s.State) {
			t.Fatalf("still %s after its end was wanted", s.State)
		}
	})
}
