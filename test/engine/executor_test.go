package test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/executor"
)

// bridged makes tasks join the fake bridge.
func task(args ...string) *api.Task {
	return &api.Task{ID: api.NewID(), ServiceID: "svc", Slot: 1, Spec: &api.TaskSpec{
		ServiceName: "web", TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "app:1", Args: args}},
	}}
}

func newExecutor(t testing.TB, r *rig) *executor.Executor {
	t.Helper()
	e, err := executor.New(executor.Config{Engine: r.Engine, Version: "1.0", Log: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExecutor(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	now := &latest{}
	exectest.Executor(t, exectest.Harness{
		Restart: func(t *testing.T) exec.Executor {
			if now.Executor != nil {
				r.reopen()
			}
			now.Executor = newExecutor(t, r)
			return now
		},
		Sleep: func(*testing.T) *api.Task { return task("trap", "0") },
		Exit:  func(_ *testing.T, code int) *api.Task { return task("exit", fmt.Sprint(code)) },
		Print: func(_ *testing.T, lines ...string) *api.Task {
			args := []string{"all"}
			for _, l := range lines {
				args = append(args, "echo", l, ",")
			}
			return task(append(args, "exit", "0")...)
		},
		Missing: func(*testing.T) *api.Task {
			x := task()
			x.Spec.ContainerSpec.Image = "127.0.0.1:1/nothing:1"
			return x
		},
	})
}

// latest is the executor of the last restart: the suite cleans up with
// controllers from before it.
type latest struct{ exec.Executor }

func (l *latest) Controller(t *api.Task, d exec.Dependencies) (exec.Controller, error) {
	c, err := l.Executor.Controller(t, d)
	return &renewed{c, l, l.Executor, t, d}, err
}

type renewed struct {
	exec.Controller
	l    *latest
	from exec.Executor
	t    *api.Task
	d    exec.Dependencies
}

func (r *renewed) renew() exec.Controller {
	if r.l.Executor != r.from {
		r.from = r.l.Executor
		r.Controller, _ = r.from.Controller(r.t, r.d)
	}
	return r.Controller
}

func (r *renewed) Terminate(ctx context.Context) error { return r.renew().Terminate(ctx) }
func (r *renewed) Remove(ctx context.Context) error    { return r.renew().Remove(ctx) }

func TestUnhealthy(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	e := newExecutor(t, r)
	x := task("trap", "0")
	x.Spec.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "/prog", "exit", "1"}, Interval: 50 * time.Millisecond, Retries: 2}
	c, err := e.Controller(x, nothing{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err == nil || err.Error() != "unhealthy container" {
		t.Error(err)
	}
	if err := c.Wait(t.Context()); err == nil || err.Error() != "unhealthy container" {
		t.Error(err)
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

type nothing struct{}

func (nothing) Secret(string) (*api.Secret, bool)   { return nil, false }
func (nothing) Config(string) (*api.Config, bool)   { return nil, false }
func (nothing) Network(string) (*api.Network, bool) { return nil, false }

// TestFifty says how long fifty tasks take to run.
func TestFifty(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	e := newExecutor(t, r)
	var wg sync.WaitGroup
	began := time.Now()
	for range 50 {
		wg.Go(func() {
			c, err := e.Controller(task("sleep"), nothing{})
			if err != nil {
				t.Error(err)
				return
			}
			if err := c.Prepare(t.Context()); err != nil {
				t.Error(err)
				return
			}
			if err := c.Start(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("50 tasks in %v", time.Since(began))
}
