package engine

import (
	"context"

	"github.com/moby/moby/api/types/container"
)

// waiter waits for an end.
type waiter struct {
	removed bool // for the removal, not the exit
	ch      chan container.WaitResponse
}

// takeWaiters removes and returns those that wait for an exit, or all. The
// caller holds mu.
func (c *ctr) takeWaiters(all bool) []*waiter {
	var out, left []*waiter
	for _, w := range c.waiters {
		if all || !w.removed {
			out = append(out, w)
		} else {
			left = append(left, w)
		}
	}
	c.waiters = left
	return out
}

func answer(ws []*waiter, code int, failure string) {
	r := container.WaitResponse{StatusCode: int64(code)}
	if failure != "" {
		r.Error = &container.WaitExitError{Message: failure}
	}
	for _, w := range ws {
		w.ch <- r // it has room for one
	}
}

// AwaitExited returns nil once the container has no process any more. What it had,
// its network and mounts, may not have been given back yet: ContainerWait waits
// for that.
func (e *Engine) AwaitExited(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	select {
	case <-r.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ContainerWait returns a channel that gives one response, once the condition
// holds. The condition counts from the call on, not from when the channel is
// read.
func (e *Engine) ContainerWait(ctx context.Context, name string, cond container.WaitCondition) (<-chan container.WaitResponse, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	w := &waiter{removed: cond == container.WaitConditionRemoved, ch: make(chan container.WaitResponse, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		answer([]*waiter{w}, c.rec.ExitCode, "")
		return w.ch, nil
	case c.rec.Phase != phaseRunning && c.rec.Phase != phaseStarting && !c.rec.Restarting && (cond == container.WaitConditionNotRunning || cond == ""):
		answer([]*waiter{w}, c.rec.ExitCode, c.rec.Error)
		return w.ch, nil
	}
	c.waiters = append(c.waiters, w)
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, x := range c.waiters {
			if x == w {
				c.waiters = append(c.waiters[:i:i], c.waiters[i+1:]...)
				return
			}
		}
	})
	return w.ch, nil
}
