package scheduler

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Refusal says which nodes a filter turned a task away from.
type Refusal struct {
	// Why is the filter's sentence, as pending tasks show it:
	// "insufficient resources on 2 nodes".
	Why string
	// Nodes are the ids, sorted.
	Nodes []string
}

// Forecast is what would become of a task.
type Forecast struct {
	Placement
	// Refused has the nodes that could not take the task when the first of its
	// kind was placed, or, if it would stay pending, when it was its turn.
	Refused []Refusal
}

// Preview says where tasks would go in a snapshot, writing nothing. Tasks of the
// snapshot for which gone reports true count as ended; it may be nil. The
// tasks to place need ID, ServiceID, SpecVersion, Slot and Spec, and NodeID if
// they are a global service's. Others that are pending are left aside. Placements
// come in Schedule's order, not that of tasks. It costs a pass over the snapshot's nodes and tasks.
func Preview(r store.Reader, tasks []*api.Task, gone func(*api.Task) bool, now time.Time) []Forecast {
	s := New()
	for n := range store.List[*api.Node](r) {
		s.SetNode(n)
	}
	for t := range store.List[*api.Task](r) {
		if gone == nil || !gone(t) {
			s.SetTask(t.ID, t, now)
		}
	}
	return s.preview(tasks, now)
}

func (s *State) preview(tasks []*api.Task, now time.Time) []Forecast {
	before := map[string][]Refusal{}
	for _, t := range tasks {
		if k := groupKey(t); t.NodeID == "" && before[k] == nil {
			before[k] = s.refusals(t)
		}
	}
	placements := s.Schedule(tasks, now)
	after := map[string][]Refusal{}
	out := make([]Forecast, len(placements))
	for i, p := range placements {
		k := groupKey(p.Task)
		switch {
		case p.Task.NodeID != "":
			k = p.Task.ID
			if p.NodeID == "" {
				after[k] = s.refusals(p.Task)
			}
		case p.NodeID == "" && after[k] == nil:
			after[k] = s.refusals(p.Task)
		}
		out[i] = Forecast{Placement: p, Refused: before[k]}
		if p.NodeID == "" {
			out[i].Refused = after[k]
		}
	}
	return out
}

// refusals asks every node that the task could go to, in its own words.
func (s *State) refusals(t *api.Task) []Refusal {
	g := s.newGroup(t)
	by := map[filter][]string{}
	for id, n := range s.nodes {
		if t.NodeID != "" && t.NodeID != id {
			continue
		}
		if f := g.refusal(n); f != passed {
			by[f] = append(by[f], id)
		}
	}
	out := []Refusal{}
	for f, nodes := range by {
		slices.Sort(nodes)
		out = append(out, Refusal{Why: g.explain(f, len(nodes)), Nodes: nodes})
	}
	slices.SortFunc(out, func(a, b Refusal) int {
		if len(a.Nodes) != len(b.Nodes) {
			return len(b.Nodes) - len(a.Nodes)
		}
		return slices.Compare(a.Nodes, b.Nodes)
	})
	return out
}

// Fits says why a node of the snapshot has no place for another task like t, which is on
// some node, in the words of the filters; "" if it has. It costs a pass over the
// tasks of that node, and of t's if there are affinities.
func Fits(r store.Reader, t *api.Task, nodeID string) string {
	s := New()
	s.read(r, nodeID)
	if t.NodeID != nodeID && t.Spec.ServiceLabels[api.AffinityLabel] != "" {
		s.read(r, t.NodeID) // its service is there already, which an affinity to itself asks
	}
	c := *t
	c.NodeID, c.Status = nodeID, swarm.TaskStatus{}
	return s.check(&c, time.Time{}).Why
}

// read adds a node of the snapshot and its tasks.
func (s *State) read(r store.Reader, nodeID string) {
	n := store.Get[*api.Node](r, nodeID)
	if n == nil {
		return
	}
	s.SetNode(n)
	for t := range store.List[*api.Task](r, store.ByNode(nodeID)) {
		s.SetTask(t.ID, t, time.Time{})
	}
}
