package executor

import (
	"context"
	"time"

	"github.com/legion-swarm/legion/api"
)

// serve says whether the task can be given work.
func (c *controller) serve(id string, can bool) {
	if n := c.e.cfg.Networks; n != nil {
		n.Serve(id, can)
	}
}

// serveIfReady has a task that runs be given work if it is ready, and returns what
// is closed when that may change; nil: never.
func (c *controller) serveIfReady(id string) <-chan struct{} {
	fit := true
	select {
	case <-c.unfit:
		fit = false
	default:
	}
	if c.ready == nil {
		c.serve(id, fit)
		return nil
	}
	v, changed := c.ready.get()
	c.serve(id, v.ready && fit)
	return changed
}

// listed reports whether other nodes may send work to the task.
func (c *controller) listed() bool {
	return c.e.cfg.Networks != nil && c.task.ServiceID != "" && c.task.JobIteration == nil && len(c.task.Networks) > 0
}

// drain takes the task out of the lists of those that serve, waits until everyone has
// done so, and has the task serve on for its delay: connections may be on their way.
// One that was in none is not waited for.
func (c *controller) drain(ctx context.Context, id string) error {
	n := c.e.cfg.Networks
	if n == nil {
		return nil
	}
	was, err := n.Drain(ctx, id)
	if err != nil || !was || c.task.Spec == nil || c.task.Spec.ContainerSpec == nil {
		return err
	}
	if c.drainDelay > 0 {
		err := n.Withdrawn(ctx)
		if err != nil && ctx.Err() == nil && !api.Is(err, api.Unimplemented) {
			c.e.cfg.Log.Info("a task is stopped though other nodes may send it new connections", "task", c.task.ID, "err", err)
		}
	}
	t := time.NewTimer(c.drainDelay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// retire takes the task out of the lists at once and for ever, here and elsewhere:
// it is to be stopped, or what its process had is yet to be given back, either of
// which may take a while.
func (c *controller) retire(id string, why error) {
	select {
	case <-c.unfit:
		return
	default:
	}
	c.unfitWhy = why
	close(c.unfit)
	if c.ready != nil {
		c.ready.set(func(v verdict) verdict { v.known, v.ready, v.why = true, false, why.Error(); return v })
	}
	c.serve(id, false)
}
