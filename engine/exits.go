package engine

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/legion-swarm/legion/api"
)

const (
	// drainPatience is how long output may still come when the process is gone:
	// a process that left the container's namespaces may hold the pipe.
	drainPatience = 2 * time.Second
	// oomPatience is how long a report of the kernel's killing may lag behind.
	oomPatience  = 50 * time.Millisecond
	firstBackoff = 100 * time.Millisecond
	longBackoff  = time.Minute
	steadyAfter  = 10 * time.Second // after that long a run, restarts begin anew
	killedBySIG  = 128 + 9
	rebootedCode = 255 // of what ended while nobody looked
)

// processEnded takes the report that the init process ended.
func (c *ctr) processEnded(x Exit) {
	c.mu.Lock()
	r := c.run
	earlier := r != nil && r.pid != 0 && x.Pid != 0 && r.pid != x.Pid
	c.mu.Unlock()
	if r == nil || earlier {
		return // told again
	}
	r.once.Do(func() {
		r.exit = x
		close(r.exited)
	})
}

func (c *ctr) outOfMemory() {
	c.note(func(r *record) { r.OOMKilled = true })
	c.mu.Lock()
	if c.oom != nil {
		select {
		case c.oom <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	c.event(events.ActionOOM, nil)
}

// watch waits for the end of a run and does what then is to be done.
func (c *ctr) watch(ctx context.Context, r *run) {
	select {
	case <-r.exited:
	case <-ctx.Done():
		return
	}
	if err := c.begin(ctx); err != nil {
		return
	}
	restart := c.finish(ctx, r)
	c.end()
	if restart {
		c.restartLater(ctx)
	}
}

// finish records the end of a run and gives back what it had. It reports
// whether the container is to be restarted.
func (c *ctr) finish(ctx context.Context, r *run) (restart bool) {
	c.stopHealth()
	// First, so that nobody is sent to it any more.
	var tidy sync.WaitGroup
	defer tidy.Wait()
	tidy.Go(func() {
		if err := c.e.cfg.Networks.Leave(ctx, c.id); err != nil {
			c.e.cfg.Log.Error("a container's network could not be removed", "container", c.id, "error", err)
		}
	})
	drain := time.NewTimer(drainPatience)
	defer drain.Stop()
	select {
	case <-r.drained:
	case <-drain.C:
		r.release()
		select {
		case <-r.drained:
		case <-ctx.Done():
			return false
		}
	case <-ctx.Done():
		return false
	}
	c.awaitOOM(ctx, r)
	tidy.Go(func() {
		if err := c.e.cfg.Runtime.Delete(ctx, c.id); err != nil {
			c.e.cfg.Log.Error("what is left of a container could not be removed", "container", c.id, "error", err)
		}
	})
	c.closeLog()
	tidy.Wait()
	r.undo()

	c.mu.Lock()
	unhealthy := c.health != nil && c.health.status() == container.Unhealthy
	ran := r.exit.At.Sub(r.started)
	if ran > steadyAfter {
		c.failures = 0
	}
	restart = c.shouldRestart(r.exit.Code)
	policy := c.rec.Host.RestartPolicy
	c.mu.Unlock()
	if restart && policy.IsOnFailure() && policy.MaximumRetryCount > 0 {
		restart = c.snapshot().RestartCount < policy.MaximumRetryCount
	}
	old := c.snapshot()
	c.note(func(rec *record) {
		rec.Phase, rec.Pid, rec.Paused, rec.Restarting = phaseExited, 0, false, restart
		rec.ExitCode, rec.FinishedAt, rec.Error = r.exit.Code, r.exit.At.UTC(), r.exit.Reason
		rec.Sandbox, rec.Ports, rec.Joined, rec.Unhealthy = "", nil, nil, unhealthy
	})
	for name := range old.Joined {
		c.networkEvent(events.ActionDisconnect, name, old.seen(name))
	}
	c.mu.Lock()
	c.run = nil
	ws := c.takeWaiters(false)
	c.mu.Unlock()
	close(r.ended)
	c.io.close()
	more := map[string]string{"exitCode": strconv.Itoa(r.exit.Code), "execDuration": strconv.Itoa(int(ran.Seconds()))}
	c.event(events.ActionDie, more)
	answer(ws, r.exit.Code, "")
	if !restart {
		c.autoRemove()
	}
	return restart
}

// autoRemove removes a container of `docker run --rm` after its end.
func (c *ctr) autoRemove() {
	if !c.snapshot().Host.AutoRemove {
		return
	}
	c.e.spawn(func(ctx context.Context) {
		err := c.e.ContainerRemove(ctx, c.id, RemoveOptions{Force: true, Volumes: true})
		if err != nil && !api.Is(err, api.NotFound) && ctx.Err() == nil {
			c.e.cfg.Log.Error("a container could not be removed after its end", "container", c.id, "error", err)
		}
	})
}

// awaitOOM waits a moment for the report that goes with a kill for memory.
func (c *ctr) awaitOOM(ctx context.Context, r *run) {
	c.mu.Lock()
	if r.exit.Code != killedBySIG || c.rec.Host.Memory == 0 || c.rec.OOMKilled || c.rec.Stopped {
		c.mu.Unlock()
		return
	}
	ch := make(chan struct{}, 1)
	c.oom = ch
	c.mu.Unlock()
	t := time.NewTimer(oomPatience)
	defer t.Stop()
	select {
	case <-ch:
	case <-t.C:
	case <-ctx.Done():
	}
	c.mu.Lock()
	c.oom = nil
	c.mu.Unlock()
}

// shouldRestart applies the restart policy. The caller holds mu.
func (c *ctr) shouldRestart(code int) bool {
	p := &c.rec.Host.RestartPolicy
	if c.rec.Managed || c.rec.Stopped || c.stopping {
		return false
	}
	return p.IsAlways() || p.IsUnlessStopped() || p.IsOnFailure() && code != 0
}

// restartLater starts the container again after a delay that grows with each
// failure in a row.
func (c *ctr) restartLater(ctx context.Context) {
	c.mu.Lock()
	delay := min(firstBackoff<<min(c.failures, 20), longBackoff)
	c.failures++
	ctx, cancel := context.WithCancel(ctx)
	c.restart = cancel
	c.mu.Unlock()
	c.e.spawn(func(context.Context) {
		defer cancel()
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if err := c.begin(ctx); err != nil {
			return
		}
		again := c.restartNow(ctx)
		c.end()
		if again {
			c.restartLater(c.e.life)
		}
	})
}

// restartNow reports whether to try again, as it failed.
func (c *ctr) restartNow(ctx context.Context) (again bool) {
	if !c.snapshot().Restarting || ctx.Err() != nil {
		return false
	}
	c.note(func(r *record) { r.RestartCount++ })
	err := c.start(context.WithoutCancel(ctx), nil)
	if err == nil || errors.Is(err, errStopping) {
		return false
	}
	c.e.cfg.Log.Warn("a container could not be restarted", "container", c.id, "error", err)
	r := c.snapshot()
	p := &r.Host.RestartPolicy
	if p.IsOnFailure() && p.MaximumRetryCount > 0 && r.RestartCount >= p.MaximumRetryCount {
		return false
	}
	c.note(func(r *record) { r.Restarting = true })
	return true
}

// cancelRestart ends a pending restart. It reports whether there was one.
func (c *ctr) cancelRestart() bool {
	c.mu.Lock()
	cancel, pending := c.restart, c.rec.Restarting
	c.restart = nil
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	return pending
}
