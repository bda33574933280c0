package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	firstRetry    = 100 * time.Millisecond
	maxRetry      = 10 * time.Second
	statusTimeout = 10 * time.Second
)

// runner takes one task through its life. run is the only goroutine that calls
// the controller's methods (but for Logs) and that changes the status.
type runner struct {
	id         string
	worker     *worker
	controller exec.Controller
	log        *slog.Logger
	changed    chan struct{}
	prepared   chan struct{} // closed once there is a container, or never will be

	mu       sync.Mutex
	task     *api.Task     // as last assigned, Status the agent's own; replaced, never changed
	message  *swarmpb.Task // as on disk; nil: not kept
	updated  bool          // the controller has not seen task yet
	gone     bool          // not assigned any more
	done     bool          // removed, nothing is left
	op       exec.Operation
	cancelOp context.CancelFunc // nil when no operation is under way
}

func newRunner(w *worker, t *api.Task, m *swarmpb.Task, c exec.Controller) *runner {
	r := &runner{
		id: t.ID, worker: w, controller: c, task: t, message: m,
		changed: make(chan struct{}, 1), prepared: make(chan struct{}), log: w.cfg.Log.With("task", t.ID),
	}
	r.notePrepared()
	return r
}

// notePrepared lets readers of logs begin when the container is there. Called
// with mu held.
func (r *runner) notePrepared() {
	select {
	case <-r.prepared:
	default:
		if api.Rank(r.task.Status.State) >= api.Rank(swarm.TaskStateReady) {
			close(r.prepared)
		}
	}
}

func (r *runner) poke() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// update takes a new version of the task. The status that came with it counts
// only if it is ahead of the agent's: another daemon's, or ORPHANED.
func (r *runner) update(t *api.Task, m *swarmpb.Task) {
	r.mu.Lock()
	old := r.task
	behind := api.Rank(t.Status.State) < api.Rank(old.Status.State)
	if api.Rank(t.Status.State) <= api.Rank(old.Status.State) {
		t.Status = old.Status
	}
	r.updated = r.updated || !sameWork(old, t)
	r.task, r.message, r.gone = t, m, false
	r.notePrepared()
	r.interrupt()
	r.mu.Unlock()
	if behind {
		s := t.Status
		r.worker.reporter.put(r.id, &s)
	}
	r.save()
	r.poke()
}

func sameWork(a, b *api.Task) bool {
	return reflect.DeepEqual(a.Networks, b.Networks) && reflect.DeepEqual(a.Ports, b.Ports) &&
		reflect.DeepEqual(a.Volumes, b.Volumes) && reflect.DeepEqual(a.GenericResources, b.GenericResources) &&
		reflect.DeepEqual(a.Spec, b.Spec)
}

// remove has the task ended and removed.
func (r *runner) remove() {
	r.mu.Lock()
	r.gone = true
	t := *r.task
	t.DesiredState = swarm.TaskStateRemove
	r.task = &t
	r.interrupt()
	r.mu.Unlock()
	r.save()
	r.poke()
}

// interrupt ends the operation under way if it is not what is to be done now.
// Called with mu held.
func (r *runner) interrupt() {
	if r.cancelOp == nil {
		return
	}
	if op, _ := exec.Next(r.task.Status, r.task.DesiredState, time.Time{}); op != r.op {
		r.cancelOp()
	}
}

func (r *runner) snapshot() (t *api.Task, gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.task, r.gone
}

// run ends with ctx, and when the task is removed.
func (r *runner) run(ctx context.Context) {
	defer func() {
		if err := r.controller.Close(); err != nil {
			r.log.Warn("closing the task's controller", "err", err)
		}
	}()
	r.save()
	var delay time.Duration
	for ctx.Err() == nil {
		t, gone := r.snapshot()
		op, status := exec.Next(t.Status, t.DesiredState, r.worker.now())
		switch {
		case op == exec.Advance:
			r.setStatus(status)
		case op == exec.Rest && gone:
			if r.clean(ctx) {
				r.worker.removed(r)
				return
			}
		case op == exec.Rest, (op == exec.Prepare || op == exec.Start) && !r.worker.ready(t), op == exec.Prepare && r.withheld():
			r.idle(ctx)
		default:
			if r.step(ctx, op) {
				delay = 0
				continue
			}
			delay = min(max(2*delay, firstRetry), maxRetry)
			r.pause(ctx, delay/2+rand.N(delay/2+1), op)
		}
	}
}

// idle waits for a change, handing updates to the controller.
func (r *runner) idle(ctx context.Context) {
	r.passUpdate(ctx)
	select {
	case <-r.changed:
	case <-ctx.Done():
	}
}

// pause waits before another try of op; a change of what is to be done ends it.
func (r *runner) pause(ctx context.Context, d time.Duration, op exec.Operation) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-r.changed:
		}
		t, _ := r.snapshot()
		if next, _ := exec.Next(t.Status, t.DesiredState, time.Time{}); next != op {
			return
		}
	}
}

func (r *runner) passUpdate(ctx context.Context) {
	r.mu.Lock()
	t, updated := r.task, r.updated
	r.updated = false
	r.mu.Unlock()
	if !updated {
		return
	}
	if err := r.controller.Update(ctx, t); err != nil && ctx.Err() == nil {
		r.log.Warn("updating the task's controller", "err", err)
	}
}

// step carries out an operation and takes on what came of it. False when it is
// to be tried again.
func (r *runner) step(ctx context.Context, op exec.Operation) bool {
	r.passUpdate(ctx)
	opCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.mu.Lock()
	t := r.task
	if next, _ := exec.Next(t.Status, t.DesiredState, time.Time{}); next != op {
		r.mu.Unlock()
		return true
	}
	r.op, r.cancelOp = op, cancel
	r.mu.Unlock()

	err := r.do(opCtx, op)

	r.mu.Lock()
	r.cancelOp = nil
	r.mu.Unlock()
	if err != nil && opCtx.Err() != nil {
		return true // interrupted: look again at what is to be done
	}
	out := exec.Done(t.Status, op, err, r.worker.now())
	if out.Stop {
		if err := r.controller.Terminate(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("terminating what is left of a failed task", "err", err)
		}
	}
	if !reflect.DeepEqual(out.Status, t.Status) {
		r.observe(ctx, &out.Status)
		r.setStatus(out.Status)
	}
	return !out.Retry
}

func (r *runner) do(ctx context.Context, op exec.Operation) error {
	switch op {
	case exec.Prepare:
		select {
		case r.worker.prepare <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-r.worker.prepare }()
		return r.controller.Prepare(ctx)
	case exec.Start:
		return r.watching(ctx, r.controller.Start)
	case exec.Wait:
		return r.watching(ctx, r.controller.Wait)
	case exec.Shutdown:
		return r.controller.Shutdown(ctx)
	case exec.Rest, exec.Advance:
	}
	return nil
}

// observe adds to a status what is known of the container.
func (r *runner) observe(ctx context.Context, s *swarm.TaskStatus) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	c, p, err := r.controller.Status(ctx)
	if err != nil {
		if ctx.Err() == nil {
			r.log.Debug("reading the container's status", "err", err)
		}
		return
	}
	if c != nil {
		s.ContainerStatus = c
	}
	if p != nil {
		s.PortStatus = *p
	}
}

// setStatus takes on a status, and sees that it is kept and reported.
func (r *runner) setStatus(s swarm.TaskStatus) {
	r.mu.Lock()
	if api.Rank(s.State) < api.Rank(r.task.Status.State) { // a manager was ahead, as with ORPHANED
		r.mu.Unlock()
		return
	}
	t := *r.task
	t.Status = s
	r.task = &t
	r.notePrepared()
	r.mu.Unlock()
	r.worker.reporter.put(r.id, &s)
	r.save()
}

// save has the task written to disk.
func (r *runner) save() { r.worker.saver.put(r) }

// kept returns the task as it is to be on disk; nil: not at all.
func (r *runner) kept() *swarmpb.Task {
	r.mu.Lock()
	t, m, done := r.task, r.message, r.done
	r.mu.Unlock()
	if m == nil || done {
		return nil
	}
	return &swarmpb.Task{
		Id: m.Id, Meta: m.Meta, Spec: withoutLogin(m.Spec), SpecVersion: m.SpecVersion, ServiceId: m.ServiceId, Slot: m.Slot,
		NodeId: m.NodeId, Annotations: m.Annotations, ServiceAnnotations: m.ServiceAnnotations,
		Networks: m.Networks, Endpoint: m.Endpoint, LogDriver: m.LogDriver,
		AssignedGenericResources: m.AssignedGenericResources, JobIteration: m.JobIteration,
		Volumes: m.Volumes, Global: m.Global,
		Status: swarmpb.NewTaskStatus(&t.Status), DesiredState: swarmpb.NewTaskState(t.DesiredState),
	}
}

// withoutLogin is a spec as it may be on disk: that it had a registry login can be
// seen, the login can't.
func withoutLogin(s *swarmpb.TaskSpec) *swarmpb.TaskSpec {
	if s.GetContainer().GetPullOptions().GetRegistryAuth() == "" {
		return s
	}
	s = proto.Clone(s).(*swarmpb.TaskSpec)
	s.GetContainer().PullOptions = &swarmpb.ContainerSpec_PullOptions{}
	return s
}

// withheld reports whether the task comes from disk without its registry login,
// which the managers have yet to send again.
func (r *runner) withheld() bool {
	r.mu.Lock()
	o := r.message.GetSpec().GetContainer().GetPullOptions()
	r.mu.Unlock()
	return o != nil && o.GetRegistryAuth() == "" && !r.worker.told()
}

// clean removes what is left of an ended task. False when it has to be tried
// again, or is wanted again.
func (r *runner) clean(ctx context.Context) bool {
	for delay := firstRetry; ctx.Err() == nil; delay = min(2*delay, maxRetry) {
		err := r.controller.Remove(ctx)
		if err == nil {
			_, gone := r.snapshot()
			return gone
		}
		if ctx.Err() != nil {
			return false
		}
		r.log.Warn("removing an ended task", "err", err, "retry", delay)
		if !sleep(ctx, delay) {
			return false
		}
	}
	return false
}
