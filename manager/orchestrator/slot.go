package orchestrator

import (
	"cmp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// slot is one place that a service's tasks run in, one after the other: a
// number, or a node for global services.
type slot struct {
	number int
	node   string
	// tasks of the slot, newest first, but for those to be removed.
	tasks []*api.Task
	// leaving are tasks to be removed that may still run.
	leaving []*api.Task
	// created is set when the plan has a new task for the slot.
	created bool
	// history says that all tasks but the newest were told to end, and have ended.
	history bool
}

// present are the tasks that may still be meant to run, or be deleted before it is
// their turn in the history.
func (s *slot) present() []*api.Task {
	if s.history {
		return s.tasks[:min(1, len(s.tasks))]
	}
	return s.tasks
}

// place names a slot.
type place struct {
	number int
	node   string
}

// group sorts the tasks into slots. It takes a few allocations whatever their
// number: a slot's tasks are a part of one sorted list.
func (p *plan) group() {
	if len(p.Tasks) == 0 {
		return
	}
	keys := p.keys()
	all := make([]*api.Task, len(keys))
	n := 1
	for i := range keys {
		all[i] = keys[i].task
		if i > 0 && keys[i-1].place != keys[i].place {
			n++
		}
	}
	slab := make([]slot, n)
	p.slots = make([]*slot, 0, n)
	for first := 0; first < len(keys); {
		s := &slab[len(p.slots)]
		s.number, s.node, s.history = keys[first].number, keys[first].node, true
		stay, may, end := first, first, first // where those that stay, and may run, end
		for ; end < len(keys) && keys[end].place == keys[first].place; end++ {
			switch k := &keys[end]; k.role {
			case stays:
				s.history = s.history && (end == first || k.history)
				stay, may = end+1, end+1
			case leaves:
				may = end + 1
			}
		}
		s.tasks, s.leaving = all[first:stay:stay], all[stay:may:may]
		first = end
		p.slots = append(p.slots, s)
	}
}

// key is what a task is sorted by, side by side: tasks are all over the memory.
type key struct {
	place
	role    int8
	history bool // told to end, and ended
	created int64
	task    *api.Task
}

// keys are those of all tasks, by slots. The store has them in that order, so that
// mostly each slot is sorted for itself.
func (p *plan) keys() []key {
	keys := make([]key, len(p.Tasks))
	sorted := true
	for i, t := range p.Tasks {
		k := &keys[i]
		*k = key{
			place: place{number: t.Slot}, role: role(t), created: t.CreatedAt.UnixNano(), task: t,
			history: t.DesiredState == swarm.TaskStateShutdown && api.Final(t.Status.State),
		}
		if p.spec.Global {
			k.place = place{node: t.NodeID}
		}
		p.removing = p.removing || k.role != stays
		sorted = sorted && (i == 0 || byPlace(&keys[i-1], k) <= 0)
	}
	if !sorted {
		slices.SortFunc(keys, byAge)
		return keys
	}
	for first := 0; first < len(keys); {
		end := first + 1
		for end < len(keys) && keys[end].place == keys[first].place {
			end++
		}
		if end-first > 1 {
			slices.SortFunc(keys[first:end], byAge)
		}
		first = end
	}
	return keys
}

func byPlace(a, b *key) int {
	return cmp.Or(cmp.Compare(a.number, b.number), strings.Compare(a.node, b.node))
}

func byAge(a, b key) int {
	if c := byPlace(&a, &b); c != 0 {
		return c
	}
	if c := cmp.Or(cmp.Compare(a.role, b.role), cmp.Compare(b.created, a.created)); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(b.task.Version.Index, a.task.Version.Index), cmp.Compare(a.task.ID, b.task.ID))
}

// What a task is to its slot, in the order of group.
const (
	stays  int8 = iota
	leaves      // it is to be removed and may still run
	gone
)

func role(t *api.Task) int8 {
	switch {
	case t.DesiredState != swarm.TaskStateRemove:
		return stays
	case !ended(t):
		return leaves
	}
	return gone
}

// live returns the slot's task that is meant to run: the newest of the present
// spec, else one that does run, else the newest. nil if there is none.
func (p *plan) live(s *slot) *api.Task {
	var best *api.Task
	for _, t := range s.tasks {
		if !p.wanted(t) {
			continue
		}
		if !p.stale(t) {
			return t
		}
		if best == nil || !p.running(best) && p.running(t) {
			best = t
		}
	}
	return best
}

// blocked reports whether t has to wait for others of its slot to end.
func (p *plan) blocked(s *slot, t *api.Task) bool {
	blocks := func(o *api.Task) bool { return o != t && !p.wanted(o) && !ended(o) && !p.lost(o) }
	return slices.ContainsFunc(s.tasks, blocks) || slices.ContainsFunc(s.leaving, blocks)
}

// tidy ends tasks of a slot that are meant to run besides its live one: what a
// start-first update leaves when the new task runs, has done its work, or when it was
// undone.
func (p *plan) tidy() {
	for _, s := range p.slots {
		live := p.live(s)
		if p.spent(s, live) && s.tasks[0].Status.State == swarm.TaskStateComplete && !p.full() {
			p.want(live, swarm.TaskStateShutdown)
			continue
		}
		for _, t := range s.present() {
			if t == live || !p.wanted(t) || p.standIn(live, t) || p.staying[t.ID] || live != nil && p.covers(s, live, t) {
				continue
			}
			if p.full() {
				return
			}
			if p.running(t) && !p.running(live) && !p.stale(t) && !p.evicted(t) {
				p.want(live, swarm.TaskStateShutdown) // t was to leave its node, and need not any more
				live = t
				continue
			}
			if p.running(live) || p.stale(t) == p.stale(live) || p.evicted(t) || api.Final(t.Status.State) {
				p.want(t, swarm.TaskStateShutdown)
			}
		}
	}
}

// ended reports whether nothing of the task runs any more, or ever will.
func ended(t *api.Task) bool {
	return api.Final(t.Status.State) ||
		api.Rank(t.Status.State) < api.Rank(swarm.TaskStateAssigned) && api.ToldToEnd(t.DesiredState)
}

// byItself reports whether a task has ended without having been told to.
func byItself(t *api.Task) bool {
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

// evicted reports whether the task may not stay on its node: it is down, being
// drained, meets the constraints no more, or its room is another's.
func (p *plan) evicted(t *api.Task) bool {
	if t.NodeID == "" || p.staying[t.ID] {
		return false
	}
	if p.toldToLeave(t) || p.lost(t) || p.Nodes[t.NodeID].Spec.Availability == swarm.NodeAvailabilityDrain {
		return true
	}
	return !api.MatchAll(p.constraintsOf(p.rules(t)), p.Nodes[t.NodeID])
}

// rules is the spec that says where the task may be: a stale one's own, until its turn
// in the update.
func (p *plan) rules(t *api.Task) *api.TaskSpec {
	if p.stale(t) {
		return t.Spec
	}
	return p.spec
}

func (p *plan) constraintsOf(spec *api.TaskSpec) []api.Constraint {
	if spec.Placement == nil {
		return nil
	}
	cs, ok := p.constraints[spec]
	if !ok {
		cs, _ = api.ParseConstraints(spec.Placement.Constraints) // checked when the service was written
		p.constraints[spec] = cs
	}
	return cs
}

// suits reports whether a node may have tasks of the service.
func (p *plan) suits(n *api.Node) bool {
	return api.MatchAll(p.constraintsOf(p.spec), n) &&
		(p.spec.Placement == nil || api.MatchPlatform(p.spec.Placement.Platforms, n))
}

// difference says in what an older spec differs from the present one.
type difference struct{ run, placement bool }

// stale reports whether the task must be replaced to be what the service's spec
// says. One that is just placed by other rules may stay where it fits these too.
func (p *plan) stale(t *api.Task) bool {
	if t.SpecVersion == p.Service.SpecVersion {
		return false
	}
	d, ok := p.differences[t.SpecVersion]
	if !ok {
		d.run = !t.Spec.SameRun(p.spec)
		was, is := &api.TaskSpec{}, &api.TaskSpec{}
		was.Placement, is.Placement = t.Spec.Placement, p.spec.Placement
		d.placement = !was.Equal(is)
		p.differences[t.SpecVersion] = d
	}
	if d.run || !d.placement {
		return d.run
	}
	n := p.Nodes[t.NodeID]
	return n == nil || !p.suits(n)
}
