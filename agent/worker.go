package agent

import (
	"context"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// worker has a runner for each task of the node, and what tasks refer to. Its
// methods are called from one goroutine at a time, and never block on a task.
type worker struct {
	cfg      Config
	saver    *saver
	reporter *reporter
	prepare  chan struct{} // a slot for each task that may be prepared at once
	wg       sync.WaitGroup

	// ctx is that of Run: runners live in it. Set by load.
	ctx context.Context //nolint:containedctx // its lifetime is Run's

	mu       sync.Mutex
	runners  map[string]*runner
	watchers map[*logWatch]struct{}
	secrets  map[string]*api.Secret
	configs  map[string]*api.Config
	networks map[string]*api.Network
	// complete is set once a manager has sent all assignments: from then on, what
	// is not there will not come.
	complete bool
}

var _ exec.Dependencies = (*worker)(nil)

func newWorker(cfg Config, r *reporter) *worker {
	return &worker{
		cfg: cfg, saver: newSaver(disk{filepath.Join(cfg.Dir, "tasks")}, cfg.Log), reporter: r,
		prepare: make(chan struct{}, cfg.Parallel),
		runners: map[string]*runner{}, watchers: map[*logWatch]struct{}{},
		secrets: map[string]*api.Secret{}, configs: map[string]*api.Config{}, networks: map[string]*api.Network{},
	}
}

// load takes up the tasks that an earlier daemon left on disk.
func (w *worker) load(ctx context.Context) error {
	w.ctx = ctx
	tasks, broken, err := w.saver.disk.load()
	if err != nil {
		return err
	}
	for _, path := range broken {
		w.cfg.Log.Warn("dropped a torn task file; the managers send the task again", "file", path)
	}
	for _, t := range tasks {
		w.update(t)
	}
	w.wg.Go(func() { w.saver.run(ctx) })
	return nil
}

// wait returns when all runners have ended, after ctx has.
func (w *worker) wait() {
	w.wg.Wait()
	w.saver.flush()
}

// Secret, Config and Network implement exec.Dependencies.
func (w *worker) Secret(id string) (*api.Secret, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.secrets[id]
	return s, ok
}

// Config implements exec.Dependencies.
func (w *worker) Config(id string) (*api.Config, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.configs[id]
	return c, ok
}

// Network implements exec.Dependencies.
func (w *worker) Network(id string) (*api.Network, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.networks[id]
	return n, ok
}

// replace makes the assignments those of the message, no more and no less.
func (w *worker) replace(ctx context.Context, changes []*swarmpb.AssignmentChange) {
	w.mu.Lock()
	keep := maps.Clone(w.runners)
	w.secrets, w.configs = map[string]*api.Secret{}, map[string]*api.Config{}
	w.mu.Unlock()
	w.change(changes)
	w.mu.Lock()
	w.complete = true
	w.mu.Unlock()
	for _, c := range changes {
		if t := c.GetAssignment().GetTask(); t != nil {
			delete(keep, t.GetId())
		}
	}
	for id := range keep {
		w.remove(id)
	}
	w.poke()
	w.sweep(ctx)
}

// sweep ends what the node still holds of tasks that are not assigned to it.
func (w *worker) sweep(ctx context.Context) {
	ids, err := w.cfg.Executor.Adopted(ctx)
	if err != nil {
		w.cfg.Log.Warn("listing what earlier tasks left behind", "err", err)
		return
	}
	for _, id := range ids {
		w.mu.Lock()
		_, known := w.runners[id]
		w.mu.Unlock()
		if known {
			continue
		}
		w.cfg.Log.Info("ending a task that no manager knows", "task", id)
		t := &api.Task{
			ID: id, Spec: &api.TaskSpec{}, DesiredState: swarm.TaskStateRemove,
			Status: swarm.TaskStatus{State: swarm.TaskStateRunning},
		}
		w.start(t, nil)
		w.remove(id)
	}
}

// change applies an increment: what tasks refer to before the tasks.
func (w *worker) change(changes []*swarmpb.AssignmentChange) {
	var gone []string
	for _, c := range changes {
		update := c.GetAction() == swarmpb.AssignmentChange_UPDATE
		switch item := c.GetAssignment().GetItem().(type) {
		case *swarmpb.Assignment_Secret:
			w.mu.Lock()
			set(w.secrets, item.Secret.GetId(), item.Secret.API(), update)
			w.mu.Unlock()
		case *swarmpb.Assignment_Config:
			w.mu.Lock()
			set(w.configs, item.Config.GetId(), item.Config.API(), update)
			w.mu.Unlock()
		case *swarmpb.Assignment_Task:
			if !update {
				gone = append(gone, item.Task.GetId())
			}
		}
	}
	for _, c := range changes {
		if t := c.GetAssignment().GetTask(); t != nil && c.GetAction() == swarmpb.AssignmentChange_UPDATE {
			w.update(t)
		}
	}
	for _, id := range gone {
		w.remove(id)
	}
}

func set[T any](m map[string]T, id string, v T, update bool) {
	if update {
		m[id] = v
	} else {
		delete(m, id)
	}
}

// validID keeps a message from naming a file outside the folder.
func validID(id string) bool {
	return id != "" && len(id) <= 64 && !strings.ContainsAny(id, "/\\.\x00")
}

// update hands a task to its runner, made if there is none.
func (w *worker) update(m *swarmpb.Task) {
	if !validID(m.GetId()) {
		w.cfg.Log.Error("ignored a task with an impossible id", "task", m.GetId())
		return
	}
	t := m.API()
	w.mu.Lock()
	for _, n := range m.Attached() {
		w.networks[n.ID] = n
	}
	r, ok := w.runners[t.ID]
	w.mu.Unlock()
	if ok {
		r.update(t, m)
		return
	}
	w.start(t, m)
}

// now dates statuses.
func (w *worker) now() time.Time { return w.cfg.Now().UTC() }

func (w *worker) start(t *api.Task, m *swarmpb.Task) {
	controller, err := w.cfg.Executor.Controller(t, w)
	if err != nil {
		t.Status = exec.Done(t.Status, exec.Prepare, err, w.now()).Status
		w.cfg.Log.Warn("task rejected", "task", t.ID, "err", err)
		w.reporter.put(t.ID, &t.Status)
		return
	}
	r := newRunner(w, t, m, controller)
	w.mu.Lock()
	w.runners[t.ID] = r
	watchers := maps.Clone(w.watchers)
	w.mu.Unlock()
	w.wg.Go(func() { r.run(w.ctx) })
	for l := range watchers {
		l.offer(r)
	}
}

// remove has the task's runner end it and remove all that is left of it.
func (w *worker) remove(id string) {
	w.mu.Lock()
	r := w.runners[id]
	w.mu.Unlock()
	if r != nil {
		r.remove()
	}
}

// removed is called by a runner that has removed its task.
func (w *worker) removed(r *runner) {
	w.mu.Lock()
	if w.runners[r.id] == r {
		delete(w.runners, r.id)
	}
	w.mu.Unlock()
	w.reporter.forget(r.id)
	r.mu.Lock()
	r.done = true
	r.mu.Unlock()
	r.save()
}

// poke has all runners look again.
func (w *worker) poke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runners {
		r.poke()
	}
}

// ready reports whether all that the task refers to is there, or will not come.
func (w *worker) ready(t *api.Task) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.complete || t.Spec == nil || t.Spec.ContainerSpec == nil {
		return true
	}
	for _, r := range t.Spec.ContainerSpec.Secrets {
		if _, ok := w.secrets[r.SecretID]; !ok {
			return false
		}
	}
	for _, r := range t.Spec.ContainerSpec.Configs {
		if _, ok := w.configs[r.ConfigID]; !ok {
			return false
		}
	}
	return true
}

// told reports whether a manager has sent all that is assigned to this node.
func (w *worker) told() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.complete
}
