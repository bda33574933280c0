package executor

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

// lists are Networks that note what they are told.
type lists struct {
	served []bool
	in     bool // what Drain says
	err    error
	asked  int           // whether others have taken it out, too
	others time.Duration // that they take
	late   error         // what is said of them then
}

func (*lists) Use([]*api.Network) (func(), error)            { return func() {}, nil }
func (*lists) UseFor(string, []*api.Network) (func(), error) { return func() {}, nil }
func (*lists) Announce(string, *api.Task)                    {}
func (l *lists) Serve(_ string, can bool)                    { l.served = append(l.served, can) }

func (l *lists) Drain(context.Context, string) (bool, error) { return l.in, l.err }

func (l *lists) Withdrawn(context.Context) error {
	l.asked++
	time.Sleep(l.others)
	return l.late
}

func newDrained(t *testing.T, l *lists, labels map[string]string) *controller {
	t.Helper()
	e := &Executor{cfg: Config{Networks: l, Log: slog.New(slog.DiscardHandler)}}
	made, err := e.Controller(&api.Task{ID: "t", Spec: &api.TaskSpec{TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{}}, ServiceLabels: labels}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return made.(*controller)
}

// A task that was in a list serves on until it is in no other node's, and for its delay
// from then on; one that was in none, or has no delay, is not waited for.
func TestDrain(t *testing.T) {
	for name, c := range map[string]struct {
		in     bool
		labels map[string]string
		late   error
		want   time.Duration
	}{
		"served":              {true, nil, nil, time.Second + api.DefaultDrainDelay},
		"served, with label":  {true, map[string]string{api.DrainLabel: "7s"}, nil, 8 * time.Second},
		"served, no delay":    {true, map[string]string{api.DrainLabel: "0s"}, nil, 0},
		"did not serve (yet)": {false, map[string]string{api.DrainLabel: "7s"}, nil, 0},
		"others don't say":    {true, nil, api.Errorf(api.DeadlineExceeded, "late"), time.Second + api.DefaultDrainDelay},
		"no such managers":    {true, nil, api.Errorf(api.Unimplemented, "unknown"), time.Second + api.DefaultDrainDelay},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				l := &lists{in: c.in, others: time.Second, late: c.late}
				if err := newDrained(t, l, c.labels).drain(t.Context(), "c"); err != nil || time.Since(begin) != c.want || l.asked > 0 != (c.want > 0) {
					t.Errorf("%v after %v, want %v; asked %d times", err, time.Since(begin), c.want, l.asked)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := newDrained(t, &lists{in: true}, map[string]string{api.DrainLabel: "1m"}).drain(ctx, "c"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	failed := errors.New("x")
	if err := newDrained(t, &lists{in: true, err: failed}, nil).drain(t.Context(), "c"); !errors.Is(err, failed) {
		t.Error(err)
	}
	e := &Executor{}
	if _, err := e.Controller(&api.Task{ID: "t", Spec: &api.TaskSpec{ServiceLabels: map[string]string{api.DrainLabel: "2m"}}}, nil); !errors.Is(err, exec.ErrRejected) {
		t.Errorf("a delay that is too long: %v", err)
	}
}

// A task that has become unhealthy, or whose process has ended, can't serve, from
// that moment on, whatever its test of readiness says. The first reason counts.
func TestRetiredTaskServesNobody(t *testing.T) {
	for _, labels := range []map[string]string{nil, {"legion.ready.test": "true"}} {
		l := &lists{}
		c := newDrained(t, l, labels)
		if c.ready != nil {
			c.ready.set(func(verdict) verdict { return verdict{known: true, ready: true} })
		}
		c.serveIfReady("c")
		ready, known, _, changed := c.Ready()
		c.retire("c", errUnhealthy)
		select {
		case <-changed:
		default:
			t.Error("nobody is told")
		}
		if c.ready != nil {
			c.ready.set(func(verdict) verdict { return verdict{known: true, ready: true} })
		}
		c.serveIfReady("c")
		c.retire("c", errExited)
		now, _, why, _ := c.Ready()
		if !ready || !known || now || why != "unhealthy container" || !slices.Equal(l.served, []bool{true, false, false}) {
			t.Errorf("%v, %v, then %v (%s); served %v", ready, known, now, why, l.served)
		}
	}
}

// Managers are told of the end of a process before what it had is given back only
// where somebody could be sent to it meanwhile.
func TestListed(t *testing.T) {
	attached := []api.NetworkAttachment{{NetworkID: "n"}}
	for name, v := range map[string]struct {
		task     *api.Task
		networks Networks
		want     bool
	}{
		"of a service":     {&api.Task{ServiceID: "s", Networks: attached}, &lists{}, true},
		"without networks": {&api.Task{ServiceID: "s"}, &lists{}, false},
		"of a job":         {&api.Task{ServiceID: "s", Networks: attached, JobIteration: &swarm.Version{}}, &lists{}, false},
		"attachment":       {&api.Task{Networks: attached}, &lists{}, false},
		"no networks here": {&api.Task{ServiceID: "s", Networks: attached}, nil, false},
	} {
		if got := (&controller{e: &Executor{cfg: Config{Networks: v.networks}}, task: v.task}).listed(); got != v.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
