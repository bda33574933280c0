package scheduler

import (
	"cmp"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Placement is where a task goes, or why nowhere.
type Placement struct {
	Task *api.Task
	// NodeID is empty when no node will do; then Why says which filter turned
	// away how many.
	NodeID    string
	Resources []swarm.GenericResource
	Why       string
	// Evict are tasks of lower priority that have to leave before the task finds
	// room.
	Evict []*api.Task
}

// Schedule places tasks, each on the best of the state's nodes, and counts them
// there. Tasks with a NodeID (of global services) are only checked. Tasks of one
// service and spec are placed together, in the order given; groups in the order
// of their first tasks, those of higher priority before others.
func (s *State) Schedule(tasks []*api.Task, now time.Time) []Placement {
	out := make([]Placement, 0, len(tasks))
	groups := map[string][]*api.Task{}
	var order []string
	ranked := false
	for _, t := range tasks {
		if len(s.promises) > 0 {
			if p, ok := s.redeem(t); ok {
				out = append(out, p)
				continue
			}
		}
		if t.NodeID != "" {
			out = append(out, s.check(t, now))
			continue
		}
		k := groupKey(t)
		if groups[k] == nil {
			order = append(order, k)
			ranked = ranked || t.Spec.Priority() != 0
		}
		groups[k] = append(groups[k], t)
	}
	if ranked {
		slices.SortStableFunc(order, func(a, b string) int {
			return cmp.Compare(groups[b][0].Spec.Priority(), groups[a][0].Spec.Priority())
		})
	}
	for _, k := range order {
		out = s.group(out, groups[k], now)
	}
	return out
}

// check is for a task that can run on one node only.
func (s *State) check(t *api.Task, now time.Time) Placement {
	g := s.newGroup(t)
	n := s.nodes[t.NodeID]
	if n == nil {
		return Placement{Task: t, Why: "no suitable node (its node is gone)"}
	}
	if f := g.refusal(n); f != passed {
		if f == resources || f == hostPorts {
			if out, _ := s.preempt(g, []*api.Task{t}, now, n); len(out) > 0 {
				return out[0]
			}
		}
		var r refusals
		r[f]++
		return Placement{Task: t, Why: r.explain(g)}
	}
	return s.assign(g, n, t)
}

func (s *State) assign(g *group, n *node, t *api.Task) Placement {
	p := Placement{Task: t, NodeID: n.ID, Resources: g.claim(n)}
	c := *t
	c.NodeID, c.GenericResources = n.ID, p.Resources
	s.hold(&c)
	return p
}

// group places tasks that are alike.
func (s *State) group(out []Placement, tasks []*api.Task, now time.Time) []Placement {
	g := s.newGroup(tasks[0])
	if g.plain() {
		first := s.fresh(g, len(tasks), now)
		for i, n := range first {
			out = append(out, s.assign(g, n, tasks[i]))
		}
		tasks = tasks[len(first):]
	}
	if len(tasks) == 0 {
		return out
	}
	tree, refused := s.tree(g, now)
	why := ""
	for i, t := range tasks {
		n := tree.best(g, refused)
		if n == nil {
			why = refused.explain(g)
			tasks = tasks[i:]
			break
		}
		out = append(out, s.assign(g, n.node, t))
		n.placed(g)
	}
	if why == "" {
		return out
	}
	if refused[resources]+refused[hostPorts] > 0 {
		var made []Placement
		made, tasks = s.preempt(g, tasks, now, nil)
		out = append(out, made...)
	}
	for _, t := range tasks {
		out = append(out, Placement{Task: t, Why: why})
	}
	return out
}

// fresh returns up to max nodes that have none of the service's tasks and take
// one, the emptiest first. These come before all others, whatever the rest is
// like, so that a few tasks are placed without ranking every node.
func (s *State) fresh(g *group, max int, now time.Time) []*node {
	var out []*node
	for _, at := range s.loads {
		for _, n := range at {
			if len(out) == max {
				return out
			}
			if n.of(g.service) == 0 && g.refusal(n) == passed && !n.failing(g.key, now) {
				out = append(out, n)
			}
		}
	}
	return out
}
