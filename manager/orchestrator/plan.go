package orchestrator

import (
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
	// Now is the time of the plan. Tasks that follow from it are created at this
	// time or later.
	Now time.Time
	// NewID gives an id for a new task.
	NewID func() string
	// History is how many tasks are kept in a slot; negative: all.
	History int64
	// MaxChanges bounds the plan; what is left is for the next one. 0: no bound.
	MaxChanges int
	// Evict says why a task has to leave its node, which has no room for it any
	// more; empty if it may stay. May be nil: all may.
	Evict func(taskID string) string
	// Fits reports whether a node has a place for another task like this one. May
	// be nil: all have.
	Fits func(t *api.Task, node string) bool
}

// Output is what should change.
type Output struct {
	Create []*api.Task
	// Desired are new desired states of tasks, by id.
	Desired map[string]swarm.TaskState
	// Orphaned are ids of tasks that have not ended and whose node is none any more,
	// as far as Nodes tells: nobody will hear of them again.
	Orphaned []string
	// Delete are ids of tasks that nothing keeps any more.
	Delete []string
	// Update is the service with a new update status, and after a rollback with
	// its previous spec; nil if it stays.
	Update *api.Service
	// Again is when to plan again though nothing has changed; zero: never.
	Again time.Time
	// Evicted says why tasks are ended that would do well where they are, by id.
	Evicted map[string]string
	// Waits says that the plan goes on when there is no room for one of the service's
	// tasks, as scheduler or allocator say.
	Waits bool
	// Refused are nodes that a task would have been moved to, if Fits had a place for
	// it there; one may be named twice.
	Refused []string
	// Quiet says that nothing is to be done: see PlanSlots.
	Quiet bool
}

// changes is how many tasks change.
func (o *Output) changes() int {
	return len(o.Create) + len(o.Desired) + len(o.Orphaned) + len(o.Delete)
}

// plan is a Plan under way.
type plan struct {
	Input
	out         Output
	spec        *api.TaskSpec // of new tasks
	slots       []*slot
	removing    bool                  // there are tasks to be removed
	differences map[uint64]difference // of older spec versions
	constraints map[*api.TaskSpec][]api.Constraint
	moved       map[string]bool // tasks that others were made for elsewhere
	policyOf    *api.Policy     // see labels
	staying     map[string]bool // tasks on drained nodes whose turn has not come
	started     time.Time       // when the update under way began; zero: there is none
}

func newPlan(in Input) *plan {
	p := &plan{
		Input: in, out: Output{Desired: map[string]swarm.TaskState{}},
		differences: map[uint64]difference{}, constraints: map[*api.TaskSpec][]api.Constraint{},
	}
	if in.Service != nil {
		p.spec = in.Service.TaskSpec()
		if st := in.Service.UpdateStatus; st != nil && underWay(st.State) && st.StartedAt != nil {
			p.started = *st.StartedAt
		}
	}
	return p
}

// Plan says what to do about a service's tasks.
func Plan(in Input) Output {
	p := newPlan(in)
	if in.Service == nil {
		p.removeAll(in.Tasks)
		p.removing = true
		p.reapRemoved()
		return p.out
	}
	p.group()
	p.orphan()
	switch {
	case in.Service.Job():
		p.job()
		return p.out
	case in.Service.Stopped():
		p.stop()
		p.reapRemoved()
		p.reapHistory()
		return p.out
	case p.spec.Global:
		p.global()
	default:
		p.abandon()
		p.replicated()
	}
	p.tidy()
	p.update()
	p.rebalance()
	p.explain()
	p.release()
	p.reapRemoved()
	p.reapHistory()
	p.out.Quiet = p.quiet()
	return p.out
}

// full reports whether the plan has as many changes as it may; it then goes on
// in the next one.
func (p *plan) full() bool {
	if p.MaxChanges == 0 || p.out.changes() < p.MaxChanges {
		return false
	}
	p.again(p.Now)
	return true
}

func (p *plan) again(at time.Time) {
	if p.out.Again.IsZero() || at.Before(p.out.Again) {
		p.out.Again = at
	}
}

// removeAll ends tasks for good; they are deleted once they have ended.
func (p *plan) removeAll(tasks []*api.Task) {
	for _, t := range tasks {
		if p.full() {
			return
		}
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

// wanted reports whether a task is meant to run, now or soon.
func (p *plan) wanted(t *api.Task) bool {
	return !api.ToldToEnd(p.desired(t))
}

// running reports whether the task runs, and should.
func (p *plan) running(t *api.Task) bool {
	return t != nil && t.Status.State == swarm.TaskStateRunning && p.desired(t) == swarm.TaskStateRunning
}

// create plans a new task for a slot, that starts after the delay and when
// nothing else of the slot runs.
func (p *plan) create(s *slot, delay time.Duration) *api.Task {
	t := p.newTask(s)
	if delay > 0 {
		t.NotBefore = p.Now.Add(delay)
		p.again(t.NotBefore)
	}
	if delay > 0 || p.blocked(s, t) {
		t.DesiredState = swarm.TaskStateReady
	}
	return t
}

// newTask plans a new task for a slot, that starts at once.
func (p *plan) newTask(s *slot) *api.Task {
	t := &api.Task{
		ID: p.NewID(), ServiceID: p.Service.ID, Slot: s.number, NodeID: s.node, SpecVersion: p.Service.SpecVersion, Spec: p.spec,
		Status:       swarm.TaskStatus{State: swarm.TaskStateNew, Timestamp: p.Now, Message: "created"},
		DesiredState: swarm.TaskStateRunning,
	}
	t.CreatedAt = p.sequel(s.tasks)
	s.created = true
	p.out.Create = append(p.out.Create, t)
	return t
}

// release lets tasks start that waited for their delay or for those before them.
func (p *plan) release() {
	for _, s := range p.slots {
		for _, t := range s.present() {
			switch {
			case p.desired(t) != swarm.TaskStateReady:
			case p.early(t):
				p.again(t.NotBefore)
			case !p.blocked(s, t) && !p.full():
				p.want(t, swarm.TaskStateRunning)
			}
		}
	}
}
