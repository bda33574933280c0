package scheduler

import (
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// State is what the scheduler knows of the nodes and of what runs on them. It
// belongs to one goroutine.
type State struct {
	nodes map[string]*node
	tasks book
	loads loads
	// strays counts the tasks on nodes that are not known.
	strays map[string]int
	// names has the ids of services that have tasks on nodes, by name in lower
	// case; spread, on how many nodes each has some. nil until track.
	names  map[string][]string
	spread map[string]*presence
	// priorities counts tasks by priority, without those of 0; promises is room kept
	// for pending tasks, by their ids; barren are groups for which nobody lower makes room,
	// with their priorities.
	priorities map[int]int
	promises   map[string]*promise
	barren     map[string]int
	promised   uint64 // promises made
	news       bool   // a service has come to a node where it was not
}

// New returns an empty state.
func New() *State {
	return &State{
		nodes: map[string]*node{}, tasks: book{other: map[string]*api.Task{}}, strays: map[string]int{}, priorities: map[int]int{}, promises: map[string]*promise{}, barren: map[string]int{},
	}
}

// SetNode adds a node, or takes its new version. It reports whether the node
// may now take tasks that it did not take before.
func (s *State) SetNode(n *api.Node) (better bool) {
	if have := s.nodes[n.ID]; have != nil {
		if better = changed(have.Node, n); better {
			clear(s.barren)
		}
		have.Node = n
		return better
	}
	m := newNode(n)
	if s.strays[n.ID] > 0 {
		for t := range s.tasks.all() {
			if t.NodeID == n.ID {
				s.take(m, t, 1)
				m.tasks++
			}
		}
		for _, p := range s.promises {
			if p.task.NodeID == n.ID {
				s.take(m, p.task, 1)
				m.tasks++
			}
		}
		delete(s.strays, n.ID)
	}
	s.nodes[n.ID] = m
	s.loads.add(m)
	clear(s.barren)
	return true
}

// RemoveNode forgets a node.
func (s *State) RemoveNode(id string) {
	if n := s.nodes[id]; n != nil {
		s.loads.remove(n)
		delete(s.nodes, id)
		if s.names != nil {
			for service := range n.services {
				s.vanish(service)
			}
		}
		if n.tasks > 0 {
			s.strays[id] = n.tasks
		}
	}
}

// Settle says that all changes up to a view, and none after it, have been told to
// SetTask. Who does it after each few need not have State remember every task.
func (s *State) Settle(view *store.View) { s.tasks.settle(view) }

// SetTask takes a task's new version; nil with its id: it was deleted. A task
// takes room on its node as long as it holds something. It reports whether there
// is more room now.
func (s *State) SetTask(id string, t *api.Task, now time.Time) (better bool) {
	return s.setTask(id, s.tasks.get(id), t, now)
}

// Change is SetTask for who knows the version that was told last; nil: none.
func (s *State) Change(id string, was, t *api.Task, now time.Time) (better bool) {
	return s.setTask(id, s.tasks.before(id, was), t, now)
}

// setTask takes a new version of a task, old as the book has it.
func (s *State) setTask(id string, old, t *api.Task, now time.Time) (better bool) {
	held := holds(t)
	s.tasks.hear(id, t)
	if len(s.promises) > 0 && (t == nil || t.Status.State != swarm.TaskStatePending || leaving(t)) {
		better = s.unpromise(id)
	}
	if old != nil && (!held || old.NodeID != t.NodeID) {
		if n := s.count(old, -1); n != nil && t != nil && failed(t) {
			n.fail(groupKey(t), now)
		}
		s.drop(old)
		old, better = nil, true
	}
	if !held {
		return better
	}
	if old == nil {
		s.hold(t)
		return better
	}
	if n := s.nodes[t.NodeID]; n != nil && leaving(t) != leaving(old) {
		sign := 1
		if leaving(old) {
			sign = -1
		}
		n.leave(t.ServiceID, sign)
		better = sign > 0
	}
	s.tasks.replace(t)
	return better
}

// hold has a task take its room, drop has it given back. The room itself is
// counted apart where it matters which node it was.
func (s *State) hold(t *api.Task) {
	s.tasks.add(t)
	s.countPriority(t, 1)
	s.count(t, 1)
}

func (s *State) drop(t *api.Task) {
	s.tasks.remove(t.ID)
	s.countPriority(t, -1)
	for k, p := range s.barren {
		if p <= t.Spec.Priority() {
			delete(s.barren, k)
		}
	}
}

// count counts a task in (sign 1) or out (sign -1), and returns its node if
// that is known.
func (s *State) count(t *api.Task, sign int) *node {
	n := s.nodes[t.NodeID]
	if n != nil {
		s.take(n, t, sign)
		s.loads.move(n, sign)
		return n
	}
	if s.strays[t.NodeID] += sign; s.strays[t.NodeID] == 0 {
		delete(s.strays, t.NodeID)
	}
	return nil
}

// take counts a task on a node, and the services that have some there.
func (s *State) take(n *node, t *api.Task, sign int) {
	if s.names == nil {
		n.count(t, sign)
		return
	}
	before := n.services[t.ServiceID]
	n.count(t, sign)
	switch {
	case sign > 0 && before == 0:
		s.appear(t.ServiceID, t.Spec.ServiceName)
	case sign < 0 && before == 1:
		s.vanish(t.ServiceID)
	}
}

func failed(t *api.Task) bool {
	return t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected
}

// groupKey names the set of tasks that are alike, and go where the others would.
func groupKey(t *api.Task) string {
	if t.ServiceID == "" {
		return t.ID
	}
	return t.ServiceID + "/" + strconv.FormatUint(t.SpecVersion, 10)
}
