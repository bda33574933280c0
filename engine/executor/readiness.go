package executor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

const (
	// firstTest is when a task is tested again that has never been ready; the time
	// doubles up to the interval.
	firstTest = 100 * time.Millisecond
	// maxWhy bounds what is said of a test's output.
	maxWhy = 200
)

// verdict is what is known of a task's readiness. The zero value: nothing.
type verdict struct {
	// known is set once the tests say something.
	known bool
	ready bool
	// once is set when it was ready before.
	once     bool
	failures int // in a row
	why      string
}

// after returns the verdict after a test; err is nil when it succeeded. age is how
// long the container has run. What is said of a failure is said of the first one:
// each change is written down by the managers.
func (v verdict) after(p *api.Readiness, err error, age time.Duration) verdict {
	if err == nil {
		return verdict{known: true, ready: true, once: true}
	}
	if age < p.StartPeriod {
		return v
	}
	v.failures++
	if v.failures < p.Retries || v.known && !v.ready {
		return v
	}
	v.known, v.ready, v.why = true, false, err.Error()
	return v
}

// pause is how long to wait before the next test.
func (v verdict) pause(p *api.Readiness, tests int) time.Duration {
	if v.once || tests >= 20 {
		return p.Interval
	}
	return min(p.Interval, firstTest<<tests)
}

// readiness tests one task. Safe for concurrent use.
type readiness struct {
	api.Readiness
	test func(ctx context.Context) error

	mu      sync.Mutex
	now     verdict
	changed chan struct{}
}

func newReadiness(p api.Readiness, test func(ctx context.Context) error) *readiness {
	return &readiness{Readiness: p, test: test, changed: make(chan struct{})}
}

func (r *readiness) get() (verdict, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now, r.changed
}

func (r *readiness) set(f func(v verdict) verdict) verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.now
	r.now = f(was)
	if was.known != r.now.known || was.ready != r.now.ready {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	return r.now
}

// run tests until ctx ends, a container that started at the given time.
func (r *readiness) run(ctx context.Context, started time.Time) {
	for tests := 0; ; tests++ {
		err := r.test(ctx)
		if ctx.Err() != nil {
			return
		}
		v := r.set(func(v verdict) verdict { return v.after(&r.Readiness, err, time.Since(started)) })
		t := time.NewTimer(v.pause(&r.Readiness, tests))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// Ready implements exec.Readiness.
func (c *controller) Ready() (ready, known bool, why string, changed <-chan struct{}) {
	select {
	case <-c.unfit:
		return false, true, c.unfitWhy.Error(), nil
	default:
	}
	if c.ready == nil {
		return true, true, "", c.unfit
	}
	v, changed := c.ready.get()
	return v.ready, v.known, v.why, changed
}

// probe is the test of the task's container.
func (c *controller) probe(ctx context.Context) error {
	id, ok := c.id()
	if !ok {
		return c.missing()
	}
	res, err := c.engine.ContainerProbe(ctx, id, c.ready.Command(), c.ready.Timeout)
	if err != nil {
		return err
	}
	return failure(res)
}

// failure says on one line how a test went wrong; nil: it did not.
func failure(res *container.HealthcheckResult) error {
	if res.ExitCode == 0 {
		return nil
	}
	out := strings.Join(strings.Fields(strings.ToValidUTF8(res.Output, "")), " ")
	if len(out) > maxWhy {
		out = strings.ToValidUTF8(out[:maxWhy], "") + "…"
	}
	if res.ExitCode < 0 && out != "" {
		return errors.New(out)
	}
	if out != "" {
		out = ": " + out
	}
	return fmt.Errorf("its test ended with status %d%s", res.ExitCode, out)
}

// testing tests the task until stop is called.
func (c *controller) testing(ctx context.Context, started time.Time) (stop func()) {
	if c.ready == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.ready.run(ctx, started) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// awaitReady returns when the task is ready for the first time, or has ended.
func (c *controller) awaitReady(ctx context.Context, id string) error {
	if c.ready == nil {
		return nil
	}
	ended, err := c.engine.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	if err != nil {
		return err
	}
	sick, stop := await(ctx, id, c.engine.AwaitUnhealthy)
	defer stop()
	for {
		v, changed := c.ready.get()
		if v.ready {
			return nil
		}
		select {
		case <-changed:
		case <-sick:
			return errUnhealthy
		case <-ended:
			return c.ended(ctx, id, false)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// await calls f, and closes the channel when that returns no error, until stop is
// called.
func await(ctx context.Context, id string, f func(ctx context.Context, id string) error) (_ <-chan struct{}, stop func()) {
	watch, cancel := context.WithCancel(ctx)
	came := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if f(watch, id) == nil {
			close(came)
		}
	})
	return came, func() {
		cancel()
		wg.Wait()
	}
}
