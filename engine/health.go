package engine

import (
	"context"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
)

// Docker's defaults for health checks.
const (
	probeInterval      = 30 * time.Second
	probeTimeout       = 30 * time.Second
	probeStartInterval = 5 * time.Second
	probeRetries       = 3
	probeLog           = 5
	probeOutput        = 4096
	probePrefix        = "health-" // of exec ids
	probeKillPatience  = 5 * time.Second
)

// healthState is what is known of a container's health.
type healthState struct {
	mu     sync.Mutex
	h      container.Health
	cancel context.CancelFunc
}

func (h *healthState) status() container.HealthStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.h.Status
}

func (h *healthState) report() *container.Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.h
	out.Log = slices.Clone(h.h.Log)
	return &out
}

// probePlan is a health check with all defaults filled in.
type probePlan struct {
	args                                          []string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
}

// planProbe returns nil when there is nothing to check.
func planProbe(c *container.Config) *probePlan {
	hc := c.Healthcheck
	if hc == nil || len(hc.Test) == 0 || hc.Test[0] == "NONE" {
		return nil
	}
	p := &probePlan{
		interval: hc.Interval, timeout: hc.Timeout, startPeriod: hc.StartPeriod, startInterval: hc.StartInterval, retries: hc.Retries,
	}
	switch hc.Test[0] {
	case "CMD":
		p.args = hc.Test[1:]
	case "CMD-SHELL":
		shell := c.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		p.args = append(slices.Clone(shell), hc.Test[1:]...)
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&p.interval, probeInterval}, {&p.timeout, probeTimeout}, {&p.startInterval, probeStartInterval}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if p.retries == 0 {
		p.retries = probeRetries
	}
	return p
}

// next is how long to wait before the next check: more often in the start
// period, until the first success.
func (p *probePlan) next(status container.HealthStatus, age time.Duration) time.Duration {
	if status == container.Starting && age < p.startPeriod {
		return min(p.startInterval, max(p.startPeriod-age, time.Millisecond))
	}
	return p.interval
}

// apply takes a result and returns the state after it. age is how long the
// container has run: failures in the start period do not count until a check
// succeeded.
func (p *probePlan) apply(h container.Health, r *container.HealthcheckResult, age time.Duration) container.Health {
	h.Log = append(slices.Clone(h.Log), r)
	if n := len(h.Log); n > probeLog {
		h.Log = h.Log[n-probeLog:]
	}
	if r.ExitCode == 0 {
		h.Status, h.FailingStreak = container.Healthy, 0
		return h
	}
	if h.Status == container.Starting && age < p.startPeriod {
		return h
	}
	h.FailingStreak++
	if h.FailingStreak >= p.retries {
		h.Status = container.Unhealthy
	}
	return h
}

// startHealth checks a run's health until stopHealth.
func (c *ctr) startHealth(r *run) {
	p := planProbe(c.snapshot().Config)
	if p == nil {
		c.mu.Lock()
		c.health = nil
		c.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(c.e.life)
	h := &healthState{cancel: cancel, h: container.Health{Status: container.Starting, Log: []*container.HealthcheckResult{}}}
	c.mu.Lock()
	c.health = h
	c.mu.Unlock()
	c.e.spawn(func(context.Context) {
		defer cancel()
		c.checkHealth(ctx, r, p, h)
	})
}

// stopHealth ends checking; the last state stays to be read.
func (c *ctr) stopHealth() {
	c.mu.Lock()
	h := c.health
	c.mu.Unlock()
	if h != nil {
		h.cancel()
	}
}

func (c *ctr) checkHealth(ctx context.Context, r *run, p *probePlan, h *healthState) {
	age := func() time.Duration { return c.e.cfg.Now().Sub(r.started) }
	for {
		t := time.NewTimer(p.next(h.status(), age()))
		select {
		case <-t.C:
		case <-r.exited:
			t.Stop()
			return
		case <-ctx.Done():
			t.Stop()
			return
		}
		c.mu.Lock()
		paused := c.rec.Paused
		c.mu.Unlock()
		if paused {
			continue
		}
		began := age()
		res := c.probe(ctx, p)
		if ctx.Err() != nil || res == nil {
			return
		}
		h.mu.Lock()
		before := h.h.Status
		h.h = p.apply(h.h, res, began)
		after := h.h.Status
		h.mu.Unlock()
		if after != before {
			c.event(events.ActionHealthStatus+": "+events.Action(after), nil)
			c.wakeHealth()
		}
	}
}

// probe runs the check once. Nil when the container ended meanwhile.
func (c *ctr) probe(ctx context.Context, p *probePlan) *container.HealthcheckResult {
	res := &container.HealthcheckResult{Start: c.e.cfg.Now()}
	fail := func(text string) *container.HealthcheckResult {
		res.End, res.ExitCode, res.Output = c.e.cfg.Now(), -1, text
		return res
	}
	x := &execution{id: probePrefix + newID(), c: c, exited: make(chan struct{}), req: container.ExecCreateRequest{Cmd: p.args}}
	proc, err := x.process(ctx)
	if err != nil {
		return fail(err.Error())
	}
	c.mu.Lock()
	if c.probes == nil {
		c.probes = make(map[string]*execution)
	}
	c.probes[x.id] = x
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.probes, x.id)
		c.mu.Unlock()
	}()
	_, streams, err := c.e.cfg.Runtime.Exec(context.WithoutCancel(ctx), c.id, x.id, proc, false)
	if err != nil {
		if _, rerr := c.running(); rerr != nil {
			return nil
		}
		return fail(err.Error())
	}
	out := &limited{}
	var pumps sync.WaitGroup
	for _, r := range []io.Reader{streams.Stdout, streams.Stderr} {
		if r != nil {
			pumps.Go(func() { _, _ = io.Copy(out, r) })
		}
	}
	defer func() {
		closeStreams(streams)
		pumps.Wait()
	}()
	timeout := time.NewTimer(p.timeout)
	defer timeout.Stop()
	select {
	case <-x.exited:
		wait(&pumps, probeKillPatience/10)
		res.End, res.ExitCode, res.Output = c.e.cfg.Now(), *x.code, out.String()
		return res
	case <-ctx.Done():
		_ = c.e.cfg.Runtime.KillExec(context.WithoutCancel(ctx), c.id, x.id, int(syscall.SIGKILL))
		return nil
	case <-timeout.C:
	}
	_ = c.e.cfg.Runtime.KillExec(context.WithoutCancel(ctx), c.id, x.id, int(syscall.SIGKILL))
	patience := time.NewTimer(probeKillPatience)
	defer patience.Stop()
	select {
	case <-x.exited:
	case <-patience.C:
	case <-ctx.Done():
		return nil
	}
	text := "Health check exceeded timeout (" + p.timeout.String() + ")"
	if s := out.String(); s != "" {
		text += ": " + s
	}
	return fail(text)
}

// wait waits for the group, but not longer than d.
func wait(g *sync.WaitGroup, d time.Duration) {
	done := make(chan struct{})
	go func() {
		g.Wait()
		close(done)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// probeEnded takes the report that a health check's process ended.
func (e *Engine) probeEnded(r Exit) {
	c, err := e.find(r.ID)
	if err != nil {
		return
	}
	c.mu.Lock()
	x := c.probes[r.ExecID]
	c.mu.Unlock()
	if x != nil {
		x.done(r.Code, e.cfg.Now())
	}
}

// limited keeps the first bytes that are written to it.
type limited struct {
	mu   sync.Mutex
	buf  []byte
	more bool
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(p), probeOutput-len(l.buf))
	l.buf = append(l.buf, p[:n]...)
	l.more = l.more || n < len(p)
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more {
		return string(l.buf) + "..."
	}
	return string(l.buf)
}

// wakeHealth tells those that wait for a container's health.
func (c *ctr) wakeHealth() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.healthChanged != nil {
		close(c.healthChanged)
		c.healthChanged = nil
	}
}

// AwaitHealthy returns once the container is healthy, or at once if it has no
// health check. It returns the last state when the container ended or became
// unhealthy.
func (e *Engine) AwaitHealthy(ctx context.Context, name string) (container.HealthStatus, error) {
	c, err := e.find(name)
	if err != nil {
		return "", err
	}
	for {
		c.mu.Lock()
		h, r := c.health, c.run
		if c.healthChanged == nil {
			c.healthChanged = make(chan struct{})
		}
		changed := c.healthChanged
		c.mu.Unlock()
		if h == nil {
			return container.NoHealthcheck, nil
		}
		s := h.status()
		if s != container.Starting || r == nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-r.ended:
			return h.status(), nil
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}

// AwaitUnhealthy returns nil once the container is unhealthy. It blocks for
// ever, that is until ctx ends, if that never comes.
func (e *Engine) AwaitUnhealthy(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	for {
		c.mu.Lock()
		h := c.health
		if c.healthChanged == nil {
			c.healthChanged = make(chan struct{})
		}
		changed := c.healthChanged
		c.mu.Unlock()
		if h != nil && h.status() == container.Unhealthy {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
