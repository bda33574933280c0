package agent

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// tested is a task whose readiness the test says.
type tested struct {
	exec.Controller

	mu           sync.Mutex
	ready, known bool
	why          string
	changed      chan struct{}
}

func (c *tested) Ready() (ready, known bool, why string, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready, c.known, c.why, c.changed
}

func (c *tested) set(ready bool, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready, c.known, c.why = ready, true, why
	close(c.changed)
	c.changed = make(chan struct{})
}

type testedExecutor struct {
	*exectest.Fake
	c *tested
}

func (e *testedExecutor) Controller(t *api.Task, d exec.Dependencies) (exec.Controller, error) {
	c, err := e.Fake.Controller(t, d)
	e.c.Controller = c
	return e.c, err
}

// A task that starts says why it is not ready, and so does one that runs; the time
// of its state stays.
func TestReadinessIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := make(chan struct{})
		e := &testedExecutor{c: &tested{changed: make(chan struct{})}}
		e.Fake = exectest.NewFake(func(*api.Task) exectest.Script {
			return exectest.Script{Start: func(ctx context.Context) error {
				select {
				case <-start:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}}
		})
		cfg, err := Config{
			Executor: e, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
			Dial: func(context.Context) (*grpc.ClientConn, string, error) { return nil, "", nil },
		}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		r := newReporter()
		w := newWorker(cfg, r)
		ctx, cancel := context.WithCancel(t.Context())
		if err := w.load(ctx); err != nil {
			t.Fatal(err)
		}
		defer w.wait()
		defer cancel()
		task := &api.Task{ID: "t1", NodeID: "n1", DesiredState: swarm.TaskStateRunning, Spec: &api.TaskSpec{TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "a"}}}}
		task.Status.State = swarm.TaskStateAssigned
		w.replace(ctx, []*swarmpb.AssignmentChange{{Assignment: &swarmpb.Assignment{Item: &swarmpb.Assignment_Task{
			Task: swarmpb.NewTask(task, swarmpb.NewTaskSpec(task.Spec), func(string) *api.Network { return nil }),
		}}}})
		is := func(state swarm.TaskState, text string, ready bool) time.Time {
			t.Helper()
			synctest.Wait()
			batch := r.batch()
			if len(batch) != 1 {
				t.Fatalf("%d statuses", len(batch))
			}
			s := batch[0].status
			if s.State != state || s.Err != text || api.Ready(&api.Task{Status: *s}) != ready {
				t.Fatalf("%s %q, want %s %q", s.State, s.Err, state, text)
			}
			return s.Timestamp
		}
		is(swarm.TaskStateStarting, "", false)
		e.c.set(false, "no")
		is(swarm.TaskStateStarting, "not ready: no", false)
		time.Sleep(time.Second)
		e.c.set(true, "")
		close(start)
		at := is(swarm.TaskStateRunning, "", true)
		time.Sleep(time.Second)
		e.c.set(false, "lost")
		if again := is(swarm.TaskStateRunning, "not ready: lost", false); !again.Equal(at) {
			t.Errorf("running since %v, then %v", at, again)
		}
		e.c.set(true, "")
		is(swarm.TaskStateRunning, "", true)
		e.Kill("t1", 3)
		is(swarm.TaskStateFailed, "task: non-zero exit (3)", false)
	})
}
