package orchestrator

import (
	"cmp"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Input is all that a plan depends on.
type Input struct {
	// Service whose tasks are planned; nil when it was removed.
	Service *api.Service
	// Tasks of the service, in any order.
	Tasks []*api.Task
	// Nodes by id.
	Nodes map[string]*api.Node
	// Now is the time of the plan.
	Now time.Time
	// NewID gives an id for a new task.
	NewID func() string
}

// Output is what should change.
type Output struct {
	Create []*api.Task
	// Desired are new desired states of tasks, by id.
	Desired map[string]swarm.TaskState
	// Delete are tasks that nothing keeps any more.
	Delete []string
	// Update is the service's new update status and spec, nil if they stay.
	Update *api.Service
	// Again is when to plan again though nothing has changed; zero: never.
	Again time.Time
}

// plan is a Plan under way.
type plan struct {
	Input
	out   Output
	slots []*slot
}

// slot is one place that a service's tasks run in, one after the other: a
// number, or a node for global services.
type slot struct {
	number int
	node   string
	tasks  []*api.Task // newest first
}

// Plan says what to do about a service's tasks.
func Plan(in Input) Output {
	p := &plan{Input: in, out: Output{Desired: map[string]swarm.TaskState{}}}
	if in.Service == nil {
		p.removeAll()
		return p.out
	}
	p.group()
	switch {
	case global(in.Service):
		p.global()
	default:
		p.replicated()
	}
	p.update()
	p.release()
	return p.out
}

func global(s *api.Service) bool { return s.Spec.Mode.Global != nil }

// removeAll ends the tasks of a service that is gone; the reaper deletes them
// once they have ended.
func (p *plan) removeAll() {
	for _, t := range p.Tasks {
		p.want(t, swarm.TaskStateRemove)
	}
}

// want sets a task's desired state, which only ever moves forward.
func (p *plan) want(t *api.Task, s swarm.TaskState) {
	if api.Rank(p.desired(t)) < api.Rank(s) {
		p.out.Desired[t.ID] = s
	}
}

// desired is the task's desired state as planned so far.
func (p *plan) desired(t *api.Task) swarm.TaskState {
	if s, ok := p.out.Desired[t.ID]; ok {
		return s
	}
	return t.DesiredState
}

func (p *plan) again(at time.Time) {
	if p.out.Again.IsZero() || at.Before(p.out.Again) {
		p.out.Again = at
	}
}

// group sorts the tasks into slots, but for those that are to be removed.
func (p *plan) group() {
	type key struct {
		number int
		node   string
	}
	by := map[key]*slot{}
	for _, t := range p.Tasks {
		if t.DesiredState == swarm.TaskStateRemove {
			continue
		}
		k := key{number: t.Slot}
		if global(p.Service) {
			k = key{node: t.NodeID}
		}
		s := by[k]
		if s == nil {
			s = &slot{number: k.number, node: k.node}
			by[k] = s
			p.slots = append(p.slots, s)
		}
		s.tasks = append(s.tasks, t)
	}
	for _, s := range p.slots {
		slices.SortFunc(s.tasks, newestFirst)
	}
	slices.SortFunc(p.slots, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.node, b.node))
	})
}

func newestFirst(a, b *api.Task) int {
	return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.Version.Index, a.Version.Index), cmp.Compare(a.ID, b.ID))
}

// wanted reports whether a task is meant to run, now or soon.
func (p *plan) wanted(t *api.Task) bool {
	return api.Rank(p.desired(t)) <= api.Rank(swarm.TaskStateRunning)
}

// live returns the slot's wanted task that is newest, or nil.
func (p *plan) live(s *slot) *api.Task {
	for _, t := range s.tasks {
		if p.wanted(t) {
			return t
		}
	}
	return nil
}

// running reports whether the task runs, and should.
func running(t *api.Task) bool {
	return t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning
}

// create plans a new task for a slot. after is the task that it follows, which
// must have ended before it starts; delay is the least time until it starts.
func (p *plan) create(s *slot, after *api.Task, delay time.Duration) *api.Task {
	t := NewTask(p.Service, p.NewID(), s.number, s.node, p.Now)
	if after != nil && (delay > 0 || !ended(after)) {
		t.DesiredState = swarm.TaskStateReady
		if delay > 0 {
			p.again(p.Now.Add(delay))
		}
	}
	p.out.Create = append(p.out.Create, t)
	return t
}

// NewTask makes a task of a service as it is now. node is for global services.
func NewTask(s *api.Service, id string, slot int, node string, now time.Time) *api.Task {
	t := &api.Task{
		ID: id, ServiceID: s.ID, Slot: slot, NodeID: node, SpecVersion: s.SpecVersion,
		Spec: &api.TaskSpec{
			TaskSpec: s.Spec.TaskTemplate, ServiceName: s.Spec.Name, ServiceLabels: s.Spec.Labels,
			Global: global(s), Endpoint: s.Spec.EndpointSpec, RegistryAuth: s.RegistryAuth,
		},
		Status:       swarm.TaskStatus{State: swarm.TaskStateNew, Timestamp: now, Message: "created"},
		DesiredState: swarm.TaskStateRunning,
	}
	t.CreatedAt = now
	return t
}

// ended reports whether nothing of the task runs any more, or ever will.
func ended(t *api.Task) bool {
	return api.Final(t.Status.State) || t.NodeID == "" && api.Rank(t.DesiredState) > api.Rank(swarm.TaskStateRunning)
}

// release lets tasks start that wait for the one before them, or for their
// delay.
func (p *plan) release() {
	delay := restartDelay(p.Service)
	for _, s := range p.slots {
		for i, t := range s.tasks {
			if p.desired(t) != swarm.TaskStateReady {
				continue
			}
			if i+1 < len(s.tasks) && !ended(s.tasks[i+1]) && !p.lost(s.tasks[i+1]) {
				continue
			}
			if at := t.CreatedAt.Add(delay); i+1 < len(s.tasks) && restarted(s.tasks[i+1]) && at.After(p.Now) {
				p.again(at)
				continue
			}
			p.want(t, swarm.TaskStateRunning)
		}
	}
}

// restarted reports whether the task ended by itself, so that its successor
// waits for the restart delay.
func restarted(t *api.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateComplete:
		return true
	}
	return false
}

// lost reports whether the task is on a node that can't tell of it.
func (p *plan) lost(t *api.Task) bool {
	if t.NodeID == "" {
		return false
	}
	n := p.Nodes[t.NodeID]
	return n == nil || n.Status.State == swarm.NodeStateDown
}

// evicted reports whether the task may not stay on its node.
func (p *plan) evicted(t *api.Task) bool {
	if t.NodeID == "" {
		return false
	}
	n := p.Nodes[t.NodeID]
	return p.lost(t) || n.Spec.Availability == swarm.NodeAvailabilityDrain
}
