package executor

import (
	"context"
	"time"
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

// drain takes the task out of the lists of those that serve, and gives everyone
// time to hear of it while the task serves on. One that was in none is not waited
// for.
func (c *controller) drain(ctx context.Context, id string) error {
	n := c.e.cfg.Networks
	if n == nil {
		return nil
	}
	was, err := n.Drain(ctx, id)
	if err != nil || !was || c.task.Spec == nil || c.task.Spec.ContainerSpec == nil {
		return err
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
