package engine

import (
	"context"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/legion-swarm/legion/api"
)

const (
	defaultStopTimeout = 10 // seconds
	killPatience       = 10 * time.Second
)

// ContainerStop asks the process to end, waits, and kills it. NotModified when
// it does not run.
func (e *Engine) ContainerStop(ctx context.Context, name string, o StopOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if o.Signal != "" {
		if _, err := parseSignal(o.Signal); err != nil {
			return err
		}
	}
	pending := c.cancelRestart()
	c.mu.Lock()
	r := c.run
	starting := c.rec.Phase == phaseStarting
	c.mu.Unlock()
	if starting {
		if err := c.begin(ctx); err != nil { // until the start is over
			return err
		}
		c.end()
		c.mu.Lock()
		r = c.run
		c.mu.Unlock()
	}
	if r == nil {
		if pending {
			c.note(func(r *record) { r.Restarting, r.Stopped = false, true })
			return nil
		}
		return api.Errorf(api.NotModified, "container %s is already stopped", c.id)
	}
	if err := c.stop(ctx, r, o); err != nil {
		return err
	}
	c.event(events.ActionStop, nil)
	return nil
}

// stop ends a run.
func (c *ctr) stop(ctx context.Context, r *run, o StopOptions) error {
	c.note(func(r *record) { r.Stopped = true })
	rec := c.snapshot()
	sig, timeout := int(syscall.SIGTERM), defaultStopTimeout
	if s := rec.Config.StopSignal; s != "" {
		if n, err := parseSignal(s); err == nil {
			sig = n
		}
	}
	if o.Signal != "" {
		n, err := parseSignal(o.Signal)
		if err != nil {
			return err
		}
		sig = n
	}
	if t := rec.Config.StopTimeout; t != nil {
		timeout = *t
	}
	if o.Timeout != nil {
		timeout = *o.Timeout
	}
	if rec.Paused { // a frozen process hears no signal
		if err := c.e.cfg.Runtime.Resume(ctx, c.id); err != nil && !api.Is(err, api.Conflict) {
			return err
		}
	}
	if timeout != 0 {
		c.event(events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)})
		if err := c.e.cfg.Runtime.Kill(ctx, c.id, sig, false); err != nil && !api.Is(err, api.Conflict) && !api.Is(err, api.NotFound) {
			return err
		}
		var late <-chan time.Time
		if timeout > 0 {
			t := time.NewTimer(time.Duration(timeout) * time.Second)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-r.ended:
			return nil
		case <-late:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.kill(ctx, r)
}

// kill ends a run by force and waits for its end.
func (c *ctr) kill(ctx context.Context, r *run) error {
	c.event(events.ActionKill, map[string]string{"signal": "9"})
	if err := c.e.cfg.Runtime.Kill(ctx, c.id, int(syscall.SIGKILL), false); err != nil && !api.Is(err, api.Conflict) && !api.Is(err, api.NotFound) {
		return err
	}
	t := time.NewTimer(killPatience)
	defer t.Stop()
	select {
	case <-r.ended:
		return nil
	case <-t.C:
		return api.Errorf(api.DeadlineExceeded, "cannot stop container: %s: tried to kill container, but did not receive an exit event", c.id)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ContainerKill sends a signal; empty: SIGKILL.
func (e *Engine) ContainerKill(ctx context.Context, name, signal string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	sig := int(syscall.SIGKILL)
	if signal != "" {
		if sig, err = parseSignal(signal); err != nil {
			return err
		}
	}
	r, err := c.running()
	if err != nil {
		if c.cancelRestart() {
			c.note(func(r *record) { r.Restarting, r.Stopped = false, true })
			return nil
		}
		return api.Errorf(api.Conflict, "cannot kill container: %s: %w", name, err)
	}
	rec := c.snapshot()
	stopSignal := int(syscall.SIGTERM)
	if n, err := parseSignal(rec.Config.StopSignal); err == nil {
		stopSignal = n
	}
	if sig == int(syscall.SIGKILL) || sig == stopSignal {
		c.note(func(r *record) { r.Stopped = true })
	}
	if err := e.cfg.Runtime.Kill(ctx, c.id, sig, false); err != nil {
		if api.Is(err, api.Conflict) || api.Is(err, api.NotFound) {
			return api.Errorf(api.Conflict, "cannot kill container: %s: %w", name, c.notRunning())
		}
		return err
	}
	c.event(events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)})
	if sig != int(syscall.SIGKILL) {
		return nil
	}
	t := time.NewTimer(killPatience)
	defer t.Stop()
	select {
	case <-r.ended:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// ContainerRestart stops a container, if it runs, and starts it.
func (e *Engine) ContainerRestart(ctx context.Context, name string, o StopOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	c.cancelRestart()
	c.mu.Lock()
	r := c.run
	if r != nil {
		c.stopping = true
	}
	auto := c.rec.Host.AutoRemove
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.stopping = false
		c.mu.Unlock()
	}()
	if r != nil {
		if auto {
			return api.Errorf(api.Conflict, "container %s is removed when it ends (--rm), so it can't be restarted; remove it and run another", c.id)
		}
		if err := c.stop(ctx, r, o); err != nil {
			return err
		}
		c.event(events.ActionStop, nil)
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	if err := c.start(ctx, c.e.checkLinks); err != nil && !api.Is(err, api.NotModified) {
		return err
	}
	c.event(events.ActionRestart, nil)
	return nil
}

// ContainerPause freezes all processes.
func (e *Engine) ContainerPause(ctx context.Context, name string) error {
	return e.freeze(ctx, name, true)
}

// ContainerUnpause lets frozen processes run on.
func (e *Engine) ContainerUnpause(ctx context.Context, name string) error {
	return e.freeze(ctx, name, false)
}

func (e *Engine) freeze(ctx context.Context, name string, on bool) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	if _, err := c.running(); err != nil {
		return err
	}
	r := c.snapshot()
	if r.Paused == on {
		if on {
			return api.Errorf(api.Conflict, "container %s is already paused", c.id)
		}
		return api.Errorf(api.Conflict, "container %s is not paused", c.id)
	}
	action, f := events.ActionUnPause, e.cfg.Runtime.Resume
	if on {
		action, f = events.ActionPause, e.cfg.Runtime.Pause
	}
	if err := f(ctx, c.id); err != nil {
		return err
	}
	c.note(func(r *record) { r.Paused = on && r.Phase == phaseRunning })
	c.event(action, nil)
	return nil
}
