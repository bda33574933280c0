package agent

import (
	"context"
	"sync"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

// watching runs f, and reports meanwhile whether the task is ready.
func (r *runner) watching(ctx context.Context, f func(context.Context) error) error {
	c, ok := r.controller.(exec.Readiness)
	if !ok {
		return f(ctx)
	}
	watch, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { r.follow(watch, c) })
	defer wg.Wait()
	defer cancel()
	return f(ctx)
}

func (r *runner) follow(ctx context.Context, c exec.Readiness) {
	for {
		ready, known, why, changed := c.Ready()
		if known {
			r.noteReady(ready, why)
		}
		select {
		case <-changed: // for ever, when it is nil
		case <-ctx.Done():
			return
		}
	}
}

// noteReady puts it in the status that a task can't serve, or can again. The time
// of the status stays: it is that of its state.
func (r *runner) noteReady(ready bool, why string) {
	t, _ := r.snapshot()
	s := t.Status
	if s.State != swarm.TaskStateStarting && s.State != swarm.TaskStateRunning {
		return
	}
	s.Err = ""
	if !ready {
		s.Err = api.NotReady(why)
	}
	if s.Err != t.Status.Err {
		r.setStatus(s)
	}
}
