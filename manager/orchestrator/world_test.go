package orchestrator_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/manager/scheduler"
)

// world is a swarm without loops, clock or network: services and nodes as the
// test sets them, tasks as Plan has them, placed by the real scheduler, and run
// by nodes that do at once what they are told, unless told otherwise.
type world struct {
	t        testing.TB
	now      time.Time
	index    uint64
	names    map[string]int // tasks made in each slot
	services map[string]*api.Service
	nodes    map[string]*api.Node
	tasks    map[string]*api.Task
	again    map[string]time.Time
	history  int64
	// held are nodes whose tasks stay as they are, broken ones' can't start.
	held   map[string]bool
	broken map[string]string // image, then what its tasks fail with
	// addresses is how many tasks may have one; 0: all.
	addresses int
	// log takes what happens.
	log func(format string, args ...any)
}

func newWorld(t testing.TB) *world {
	return &world{
		t: t, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), names: map[string]int{}, services: map[string]*api.Service{},
		nodes: map[string]*api.Node{}, tasks: map[string]*api.Task{}, again: map[string]time.Time{},
		history: 5, held: map[string]bool{}, broken: map[string]string{}, log: func(string, ...any) {},
	}
}

func (w *world) node(id string, labels map[string]string) *api.Node {
	n := &api.Node{Role: swarm.NodeRoleWorker}
	n.ID, n.Description.Hostname, n.Spec.Labels = id, id, labels
	n.Spec.Availability, n.Status.State = swarm.NodeAvailabilityActive, swarm.NodeStateReady
	w.nodes[id] = n
	return n
}

// setNode changes a copy of a node.
func (w *world) setNode(id string, fn func(n *api.Node)) {
	n := *w.nodes[id]
	fn(&n)
	w.nodes[id] = &n
}

// setService changes a copy of a service, as an update by a user would.
func (w *world) setService(name string, fn func(s *swarm.ServiceSpec)) {
	old := w.services[name]
	if old == nil {
		old = &api.Service{}
		old.ID, old.Spec.Name, old.SpecVersion = name, name, 1
		old.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "a"}
		old.Spec.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{}
		old.Spec.UpdateConfig, old.Spec.RollbackConfig = &swarm.UpdateConfig{Parallelism: 1}, &swarm.UpdateConfig{Parallelism: 1}
		fn(&old.Spec)
		if old.Job() {
			old.JobStatus = &swarm.JobStatus{}
		}
		w.services[name] = old
		return
	}
	s := *old
	c, r, p := *s.Spec.TaskTemplate.ContainerSpec, *s.Spec.TaskTemplate.RestartPolicy, swarm.Placement{}
	if s.Spec.TaskTemplate.Placement != nil {
		p = *s.Spec.TaskTemplate.Placement
	}
	u, b := *s.Spec.UpdateConfig, *s.Spec.RollbackConfig
	s.Spec.TaskTemplate.ContainerSpec, s.Spec.TaskTemplate.RestartPolicy, s.Spec.TaskTemplate.Placement = &c, &r, &p
	s.Spec.UpdateConfig, s.Spec.RollbackConfig = &u, &b
	s.Spec.Labels = maps.Clone(s.Spec.Labels)
	fn(&s.Spec)
	w.index++
	if !s.TaskSpec().Equal(old.TaskSpec()) {
		s.PreviousSpec, s.PreviousSpecVersion = &old.Spec, old.SpecVersion
		s.SpecVersion, s.UpdateStatus = max(old.SpecVersion, old.PreviousSpecVersion)+w.index, nil
	}
	if s.Job() && s.Stopped() == old.Stopped() {
		s.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: s.JobStatus.JobIteration.Index + 1}}
	}
	w.services[name] = &s
}

// settle plans, allocates, schedules and runs until nothing changes at this
// instant.
func (w *world) settle() {
	for range 10_000 {
		if !w.plan() && !w.place() && !w.run() {
			return
		}
	}
	w.t.Fatal("the swarm never comes to rest")
}

// pass lets time go by, planning at every instant that a plan asks for.
func (w *world) pass(d time.Duration) {
	end := w.now.Add(d)
	for {
		next := end
		for _, at := range w.again {
			if at.After(w.now) && at.Before(next) {
				next = at
			}
		}
		w.now = next
		w.settle()
		if !next.Before(end) {
			return
		}
	}
}

// setClock sets the wall clock. Timers that run do not follow it.
func (w *world) setClock(by time.Duration) {
	w.now = w.now.Add(by)
	for id, at := range w.again {
		w.again[id] = at.Add(by)
	}
}

func (w *world) plan() (changed bool) {
	ids := map[string]bool{}
	for _, s := range w.services {
		ids[s.ID] = true
	}
	for _, t := range w.tasks {
		ids[t.ServiceID] = true
	}
	for _, id := range sorted(ids) {
		in := w.input(id)
		out := orchestrator.Plan(in)
		delete(w.again, id)
		if !out.Again.IsZero() {
			w.again[id] = out.Again
		}
		changed = w.apply(&out) || changed
	}
	return changed
}

func (w *world) input(service string) orchestrator.Input {
	in := orchestrator.Input{
		Service: w.services[service], Nodes: w.nodes, Now: w.now, History: w.history,
		Evict: w.evict(), Fits: w.fits,
	}
	n := 0
	in.NewID = func() string { n++; return fmt.Sprintf("new%d", n) }
	for _, t := range w.sorted() {
		if t.ServiceID == service {
			in.Tasks = append(in.Tasks, t)
		}
	}
	return in
}

// apply writes a plan down. Tasks get names that can be read: service.slot and
// a letter for each one in the slot.
func (w *world) apply(out *orchestrator.Output) bool {
	for _, id := range sorted(out.Desired) {
		why := out.Evicted[id]
		w.log("%s: %s is to be %s%s", w.clock(), id, out.Desired[id], strings.TrimSuffix(": "+why, ": "))
		w.change(id, func(t *api.Task) { t.DesiredState, t.Evicted = out.Desired[id], cmp.Or(t.Evicted, why) })
	}
	for _, t := range out.Create {
		c := *t
		slot := fmt.Sprintf("%s.%d", t.ServiceID, t.Slot)
		if t.Spec.Global {
			slot = t.ServiceID + "." + t.NodeID
		}
		c.ID = slot + letters(w.names[slot])
		w.names[slot]++
		w.index++
		c.UpdatedAt, c.Version.Index = w.now, w.index // CreatedAt is the plan's, as the store has it
		w.tasks[c.ID] = &c
		wait := ""
		if c.NotBefore.After(w.now) {
			wait = fmt.Sprintf(", in %s", c.NotBefore.Sub(w.now))
		}
		w.log("%s: new task %s %s, to be %s%s", w.clock(), c.ID, c.Spec.ContainerSpec.Image, c.DesiredState, wait)
	}
	for _, id := range out.Orphaned {
		w.status(id, swarm.TaskStateOrphaned, "its node is none any more")
	}
	for _, id := range out.Delete {
		w.log("%s: %s is forgotten", w.clock(), id)
		delete(w.tasks, id)
	}
	if out.Update != nil {
		w.services[out.Update.ID] = out.Update
		w.log("%s: %s: %s", w.clock(), out.Update.ID, out.Update.UpdateStatus.Message)
	}
	return len(out.Create)+len(out.Desired)+len(out.Orphaned)+len(out.Delete) > 0 || out.Update != nil
}

func letters(n int) string {
	if n < 26 {
		return string(rune('a' + n))
	}
	return letters(n/26-1) + letters(n%26)
}

func (w *world) clock() string { return w.now.Format("04:05.0") }

// change replaces a task, and checks that it only moves forward.
func (w *world) change(id string, fn func(t *api.Task)) {
	old := w.tasks[id]
	c := *old
	fn(&c)
	if api.Rank(c.Status.State) < api.Rank(old.Status.State) || api.Rank(c.DesiredState) < api.Rank(old.DesiredState) {
		w.t.Fatalf("%s goes back from %s, %s to %s, %s", id, old.Status.State, old.DesiredState, c.Status.State, c.DesiredState)
	}
	w.index++
	c.UpdatedAt, c.Version.Index = w.now, w.index
	if old.Status.State == swarm.TaskStateRunning && c.Status.State == swarm.TaskStateFailed {
		c.Ran = c.Since().Sub(old.Since())
	}
	w.tasks[id] = &c
}

func (w *world) status(id string, s swarm.TaskState, err string) {
	w.log("%s: %s %s%s", w.clock(), id, s, strings.TrimSuffix(": "+err, ": "))
	w.change(id, func(t *api.Task) { t.Status = swarm.TaskStatus{State: s, Timestamp: w.now, Err: err} })
}

// place is allocator and scheduler.
func (w *world) place() (changed bool) {
	state := scheduler.New()
	for _, id := range sorted(w.nodes) {
		state.SetNode(w.nodes[id])
	}
	var pending []*api.Task
	free := w.free()
	for _, t := range w.sorted() {
		state.SetTask(t.ID, t, w.now)
		switch {
		case api.Rank(t.Status.State) > api.Rank(swarm.TaskStatePending) || api.ToldToEnd(t.DesiredState):
		case t.Status.State == swarm.TaskStateNew && free <= 0:
			if t.Status.Err == "" {
				w.status(t.ID, swarm.TaskStateNew, "no address is left")
				changed = true
			}
		default:
			pending = append(pending, t)
			if t.Status.State == swarm.TaskStateNew {
				free--
			}
		}
	}
	for _, p := range state.Schedule(pending, w.now) {
		if p.NodeID != "" {
			w.log("%s: %s assigned to %s", w.clock(), p.Task.ID, p.NodeID)
			w.change(p.Task.ID, func(t *api.Task) {
				t.NodeID, t.GenericResources, t.Status = p.NodeID, p.Resources, swarm.TaskStatus{State: swarm.TaskStateAssigned, Timestamp: w.now}
			})
			changed = true
			continue
		}
		for _, v := range p.Evict {
			w.log("%s: %s has to leave for %s", w.clock(), v.ID, p.Task.ID)
			w.change(v.ID, func(t *api.Task) { t.Evicted = "preempted" })
			changed = true
		}
		if p.Task.Status.Err != p.Why {
			w.log("%s: %s pending: %s", w.clock(), p.Task.ID, p.Why)
			w.change(p.Task.ID, func(t *api.Task) { t.Status.State, t.Status.Err = swarm.TaskStatePending, p.Why })
			changed = true
		}
	}
	return changed
}

// free is how many addresses are left.
func (w *world) free() int {
	if w.addresses == 0 {
		return len(w.tasks)
	}
	n := w.addresses
	for _, t := range w.tasks {
		assigned := api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) && !api.Final(t.Status.State)
		if assigned || t.Status.State == swarm.TaskStatePending && !api.ToldToEnd(t.DesiredState) {
			n--
		}
	}
	return n
}

// evict is what nodes have no room for.
func (w *world) evict() func(string) string {
	out := map[string]string{}
	by := map[string][]*api.Task{}
	for _, t := range w.tasks {
		if !api.Final(t.Status.State) && api.Rank(t.DesiredState) <= api.Rank(swarm.TaskStateRunning) {
			by[t.NodeID] = append(by[t.NodeID], t)
		}
	}
	for id, n := range w.nodes {
		maps.Copy(out, orchestrator.Enforce(n, by[id]))
	}
	return func(id string) string { return out[id] }
}

// fits asks the scheduler about one more task.
func (w *world) fits(t *api.Task, node string) bool {
	state := scheduler.New()
	state.SetNode(w.nodes[node])
	for _, o := range w.tasks {
		state.SetTask(o.ID, o, w.now)
	}
	c := *t
	c.ID, c.NodeID, c.Status = "another", node, swarm.TaskStatus{}
	return state.Schedule([]*api.Task{&c}, w.now)[0].NodeID != ""
}

// run is what nodes do for their tasks: for each its next step.
func (w *world) run() (changed bool) {
	for _, t := range w.sorted() {
		changed = w.step(t) || changed
	}
	return changed
}

// step takes a task one step on.
func (w *world) step(t *api.Task) bool {
	n := w.nodes[t.NodeID]
	if n == nil || n.Status.State == swarm.NodeStateDown || w.held[n.ID] || api.Final(t.Status.State) ||
		api.Rank(t.Status.State) < api.Rank(swarm.TaskStateAssigned) {
		return false
	}
	err, broken := w.broken[t.Spec.ContainerSpec.Image]
	starts := t.DesiredState == swarm.TaskStateRunning || t.DesiredState == swarm.TaskStateComplete
	switch {
	case api.Rank(t.DesiredState) >= api.Rank(swarm.TaskStateShutdown):
		w.status(t.ID, swarm.TaskStateShutdown, "")
	case api.Rank(t.Status.State) < api.Rank(swarm.TaskStateReady) && strings.HasPrefix(err, "no such image"):
		w.status(t.ID, swarm.TaskStateRejected, err)
	case api.Rank(t.Status.State) < api.Rank(swarm.TaskStateReady):
		w.status(t.ID, swarm.TaskStateReady, "")
	case starts && broken:
		w.status(t.ID, swarm.TaskStateFailed, err)
	case starts && t.Status.State != swarm.TaskStateRunning:
		w.status(t.ID, swarm.TaskStateRunning, "")
	default:
		return false
	}
	return true
}

// sorted are the tasks by service, slot and age.
func (w *world) sorted() []*api.Task {
	out := make([]*api.Task, 0, len(w.tasks))
	for _, t := range w.tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *api.Task) int {
		return cmp.Or(strings.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.Slot, b.Slot), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(len(a.ID), len(b.ID)), strings.Compare(a.ID, b.ID))
	})
	return out
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
