package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// promise is room on a node that is kept for a task until those that have to
// leave for it have ended.
type promise struct {
	task    *api.Task // as it will be there; generic resources as numbers
	victims []*api.Task
	number  uint64 // the order in which promises were made
}

// countPriority keeps the number of tasks by priority, without those of 0.
func (s *State) countPriority(t *api.Task, sign int) {
	if p := t.Spec.Priority(); p != 0 {
		if s.priorities[p] += sign; s.priorities[p] == 0 {
			delete(s.priorities, p)
		}
	}
}

// lower reports whether there are tasks of a lower priority.
func (s *State) lower(than int) bool {
	others := 0
	for p, n := range s.priorities {
		if p < than {
			return true
		}
		others += n
	}
	return than > 0 && s.tasks.count > others
}

// leaving reports whether a task is on its way out.
func leaving(t *api.Task) bool {
	return t.Evicted != "" || api.ToldToEnd(t.DesiredState)
}

// unsuited reports whether the node would refuse the group however much room it had.
func (g *group) unsuited(n *node) bool {
	return n.Status.State != swarm.NodeStateReady || n.Spec.Availability != swarm.NodeAvailabilityActive ||
		len(g.drivers) > 0 && !g.plugged(n) || !api.MatchAll(g.constraints, n.Node) ||
		g.spec.Placement != nil && !api.MatchPlatform(g.spec.Placement.Platforms, n.Node) ||
		g.maxReplicas > 0 && n.of(g.service) >= g.maxReplicas || g.apart(n) >= 0
}

// room reports whether the node has what the group's tasks reserve, and their ports.
func (g *group) room(n *node) bool {
	return g.fits(n) && !slices.ContainsFunc(g.ports, func(p port) bool { return n.ports[p] > 0 })
}

// eviction is what it takes to make room for one task on a node.
type eviction struct {
	node    *node
	victims []*api.Task
	all     []*api.Task // the victims, and those that leave anyhow
}

// before ranks evictions: that of the lowest priorities, then of the fewest.
func (e *eviction) before(o *eviction) int {
	return cmp.Or(cmp.Compare(e.highest(), o.highest()), cmp.Compare(len(e.victims), len(o.victims)), strings.Compare(e.node.ID, o.node.ID))
}

func (e *eviction) highest() int {
	p := -1 << 31
	for _, t := range e.victims {
		p = max(p, t.Spec.Priority())
	}
	return p
}

// preempt makes room for tasks of the group that found none, as far as tasks of
// lower priority take it. Those that it can't help are left.
func (s *State) preempt(g *group, tasks []*api.Task, now time.Time, only *node) (out []Placement, left []*api.Task) {
	if !s.lower(g.priority) {
		return nil, tasks
	}
	if _, ok := s.barren[g.key]; ok && only == nil {
		return nil, tasks
	}
	below, going := s.below(g, only), s.going()
	var plans []*eviction
	for n, lower := range below {
		if e := g.eviction(n, lower, going, now); e != nil {
			plans = append(plans, e)
		}
	}
	for i, t := range tasks {
		if len(plans) == 0 {
			if only == nil && len(g.rules) == 0 {
				s.barren[g.key] = g.priority
			}
			return out, tasks[i:]
		}
		best := slices.MinFunc(plans, (*eviction).before)
		out = append(out, s.promise(g, best, t))
		n := best.node
		plans = slices.DeleteFunc(plans, func(e *eviction) bool { return e == best })
		for _, v := range best.victims {
			going[v.ID] = true
		}
		if e := g.eviction(n, below[n], going, now); e != nil {
			plans = append(plans, e)
		}
	}
	return out, nil
}

// below are the tasks of lower priority by node, in the order in which they may
// stay: the highest first, of these the small ones, so that few have to go, and
// the oldest.
func (s *State) below(g *group, only *node) map[*node][]*api.Task {
	out := map[*node][]*api.Task{}
	for t := range s.tasks.all() {
		n := s.nodes[t.NodeID]
		if n == nil || only != nil && n != only || t.ServiceID == g.service || t.Spec.Priority() >= g.priority {
			continue
		}
		out[n] = append(out[n], t)
	}
	for n, ts := range out {
		slices.SortFunc(ts, func(a, b *api.Task) int {
			return cmp.Or(cmp.Compare(b.Spec.Priority(), a.Spec.Priority()), cmp.Compare(n.size(a), n.size(b)),
				a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
		})
	}
	return out
}

// going are the tasks that have been asked, or are about to be, to leave for others.
func (s *State) going() map[string]bool {
	out := map[string]bool{}
	for _, p := range s.promises {
		for _, v := range p.victims {
			out[v.ID] = true
		}
	}
	return out
}

// eviction says which of the node's lower tasks have to go for one of the group;
// nil if all of them are not enough, or the group may not be there. Where the
// group keeps failing nobody has to go for it.
func (g *group) eviction(n *node, lower []*api.Task, going map[string]bool, now time.Time) *eviction {
	if len(lower) == 0 || g.unsuited(n) || n.failing(g.key, now) {
		return nil
	}
	for _, t := range lower {
		n.count(t, -1)
	}
	enough := g.room(n)
	e := &eviction{node: n}
	for _, t := range lower { // who comes first stays, if there is room
		n.count(t, 1)
		switch {
		case !enough:
		case leaving(t) || going[t.ID]:
			e.all = append(e.all, t)
			n.count(t, -1)
		case !g.room(n):
			e.victims, e.all = append(e.victims, t), append(e.all, t)
			n.count(t, -1)
		}
	}
	for _, t := range e.all {
		n.count(t, 1)
	}
	if !enough {
		return nil
	}
	return e
}

// size is how much of the node a task reserves.
func (n *node) size(t *api.Task) float64 {
	if t.Spec.Resources == nil || t.Spec.Resources.Reservations == nil {
		return 0
	}
	r, have, sum := t.Spec.Resources.Reservations, &n.Description.Resources, 0.0
	if have.NanoCPUs > 0 {
		sum += float64(r.NanoCPUs) / float64(have.NanoCPUs)
	}
	if have.MemoryBytes > 0 {
		sum += float64(r.MemoryBytes) / float64(have.MemoryBytes)
	}
	return sum
}

// promise keeps the room for a task.
func (s *State) promise(g *group, e *eviction, t *api.Task) Placement {
	c := *t
	c.NodeID, c.GenericResources = e.node.ID, g.reserve.GenericResources
	s.promised++
	p := &promise{task: &c, victims: e.all, number: s.promised}
	s.promises[t.ID] = p
	s.count(&c, 1)
	return s.waits(t, p)
}

// waits says what a task with a promise waits for, and who has yet to be told
// to leave for it.
func (s *State) waits(t *api.Task, p *promise) Placement {
	out := Placement{Task: t}
	left := 0
	for _, v := range p.victims {
		cur := s.tasks.get(v.ID)
		if cur == nil {
			continue
		}
		left++
		if !leaving(cur) {
			out.Evict = append(out.Evict, cur)
		}
	}
	name := p.task.NodeID
	if n := s.nodes[name]; n != nil && n.Description.Hostname != "" {
		name = n.Description.Hostname
	}
	tasks := "tasks"
	if left == 1 {
		tasks = "task"
	}
	out.Why = fmt.Sprintf("waiting for room on node %s: %d %s of lower priority must leave", name, left, tasks)
	return out
}

// redeem places a task where it was promised room, if that is there by now. Not
// ok: there is no promise that holds, the task is like any other.
func (s *State) redeem(t *api.Task) (p Placement, ok bool) {
	pr := s.promises[t.ID]
	if pr == nil {
		return p, false
	}
	s.unpromise(t.ID)
	n, g := s.nodes[pr.task.NodeID], s.newGroup(t)
	if n == nil || g.unsuited(n) {
		return p, false
	}
	if s.roomBefore(pr, g, n) {
		return s.assign(g, n, t), true
	}
	if !slices.ContainsFunc(pr.victims, func(v *api.Task) bool { return s.tasks.get(v.ID) != nil }) {
		return p, false
	}
	s.promises[t.ID] = pr
	s.count(pr.task, 1)
	return s.waits(t, pr), true
}

// roomBefore reports whether there is room now for what was promised, leaving aside
// the promises that were made later: these count on others to leave.
func (s *State) roomBefore(pr *promise, g *group, n *node) bool {
	var later []*api.Task
	for _, p := range s.promises {
		if p.task.NodeID == n.ID && p.number > pr.number {
			later = append(later, p.task)
			n.count(p.task, -1)
		}
	}
	room := g.room(n)
	for _, t := range later {
		n.count(t, 1)
	}
	return room
}

// unpromise gives up the room that is kept for a task.
func (s *State) unpromise(id string) bool {
	p := s.promises[id]
	if p == nil {
		return false
	}
	s.count(p.task, -1)
	delete(s.promises, id)
	clear(s.barren)
	return true
}

// evictedBy is what is shown of a task that had to leave for another.
func evictedBy(t *api.Task) string {
	return fmt.Sprintf("preempted by %s.%d, of priority %d", t.Spec.ServiceName, t.Slot, t.Spec.Priority())
}
