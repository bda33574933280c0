package scheduler

import (
	"cmp"
	"container/heap"
	"slices"
	"strings"
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
}

// Schedule places tasks, all at the state's nodes as they are, and counts them
// there. Tasks with a NodeID (of global services) are only checked. Tasks of one
// service and spec are placed together.
func (s *State) Schedule(tasks []*api.Task, now time.Time) []Placement {
	out := make([]Placement, 0, len(tasks))
	groups := map[string][]*api.Task{}
	var order []string
	for _, t := range tasks {
		if t.NodeID != "" {
			out = append(out, s.check(t))
			continue
		}
		k := failureKey(t)
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], t)
	}
	for _, k := range order {
		out = s.place(out, groups[k], now)
	}
	return out
}

// check is for a task that can run on one node only.
func (s *State) check(t *api.Task) Placement {
	p := Placement{Task: t}
	g := newGroup(t)
	n := s.nodes[t.NodeID]
	if n == nil {
		p.Why = "its node is gone"
		return p
	}
	for _, f := range filters() {
		if !f.check(g, n) {
			p.Why = "no suitable node (" + f.explain(1) + ")"
			return p
		}
	}
	return s.assign(g, n, t)
}

func (s *State) assign(g *group, n *node, t *api.Task) Placement {
	p := Placement{Task: t, NodeID: n.ID, Resources: g.take(n)}
	c := *t
	c.NodeID, c.GenericResources = n.ID, p.Resources
	s.tasks[t.ID] = &c
	n.add(&c, 1)
	return p
}

// place puts a group's tasks on the best nodes, one after the other.
func (s *State) place(out []Placement, tasks []*api.Task, now time.Time) []Placement {
	g := newGroup(tasks[0])
	refused := make([]int, len(filters()))
	tree := &branch{}
	for _, n := range s.nodes {
		if f := g.refusal(n); f >= 0 {
			refused[f]++
			continue
		}
		tree.insert(g.preferences(), &candidate{node: n, failing: n.failing(g.key, now), mine: n.services[g.service]})
	}
	tree.init()
	for _, t := range tasks {
		n := tree.best(g, refused)
		if n == nil {
			out = append(out, Placement{Task: t, Why: explain(refused, len(s.nodes))})
			continue
		}
		out = append(out, s.assign(g, n.node, t))
		tree.placed(g, n)
	}
	return out
}

// refusal returns the first filter that refuses the node, or -1.
func (g *group) refusal(n *node) int {
	for i, f := range filters() {
		if !f.check(g, n) {
			return i
		}
	}
	return -1
}

func explain(refused []int, nodes int) string {
	if nodes == 0 {
		return "no suitable node (there are no nodes)"
	}
	var why []string
	for i, f := range filters() {
		if refused[i] > 0 {
			why = append(why, f.explain(refused[i]))
		}
	}
	return "no suitable node (" + strings.Join(why, "; ") + ")"
}

// preferences are the labels that a group is spread over, outermost first.
func (g *group) preferences() []string {
	if g.spec.Placement == nil {
		return nil
	}
	var out []string
	for _, p := range g.spec.Placement.Preferences {
		if p.Spread != nil {
			out = append(out, p.Spread.SpreadDescriptor)
		}
	}
	return out
}

// candidate is a node that may take a task of the group.
type candidate struct {
	*node
	failing bool
	mine    int // tasks of the service on it
	path    []*branch
}

// before ranks candidates: nodes where the service does not keep failing, with
// few of its tasks, with few tasks.
func (c *candidate) before(o *candidate) bool {
	if c.failing != o.failing {
		return !c.failing
	}
	return cmp.Or(cmp.Compare(c.mine, o.mine), cmp.Compare(c.node.tasks, o.node.tasks), strings.Compare(c.ID, o.ID)) < 0
}

// branch is the set of nodes that share values of spread preferences; a leaf
// has a heap of nodes.
type branch struct {
	children map[string]*branch
	order    []*branch
	mine     int
	leaves   leaves
}

type leaves []*candidate

func (l leaves) Len() int           { return len(l) }
func (l leaves) Less(i, j int) bool { return l[i].before(l[j]) }
func (l leaves) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *leaves) Push(x any)        { *l = append(*l, x.(*candidate)) }
func (l *leaves) Pop() any {
	c := (*l)[len(*l)-1]
	*l = (*l)[:len(*l)-1]
	return c
}

func (b *branch) insert(labels []string, c *candidate) {
	b.mine += c.mine
	c.path = append(c.path, b)
	if len(labels) == 0 {
		b.leaves = append(b.leaves, c)
		return
	}
	if b.children == nil {
		b.children = map[string]*branch{}
	}
	v := label(c.node, labels[0])
	child := b.children[v]
	if child == nil {
		child = &branch{}
		b.children[v] = child
		b.order = append(b.order, child)
	}
	child.insert(labels[1:], c)
}

// label reads what a spread descriptor names; a node without it has "".
func label(n *node, descriptor string) string {
	switch {
	case hasPrefixFold(descriptor, nodeLabels):
		return n.Spec.Labels[descriptor[len(nodeLabels):]]
	case hasPrefixFold(descriptor, engineLabels):
		return n.Description.Engine.Labels[descriptor[len(engineLabels):]]
	}
	return ""
}

func (b *branch) init() {
	heap.Init(&b.leaves)
	for _, c := range b.order {
		c.init()
	}
}

func (b *branch) empty() bool {
	return len(b.leaves) == 0 && !slices.ContainsFunc(b.order, func(c *branch) bool { return !c.empty() })
}

// best returns the first candidate of the branch with the fewest of the
// service's tasks. Candidates that have filled up meanwhile are dropped.
func (b *branch) best(g *group, refused []int) *candidate {
	for len(b.leaves) > 0 {
		c := b.leaves[0]
		f := g.refusal(c.node)
		if f < 0 {
			return c
		}
		refused[f]++
		heap.Pop(&b.leaves)
	}
	for {
		var least *branch
		for _, c := range b.order {
			if (least == nil || c.mine < least.mine) && !c.empty() {
				least = c
			}
		}
		if least == nil {
			return nil
		}
		if c := least.best(g, refused); c != nil {
			return c
		}
	}
}

// placed counts a task of the group on the candidate, which best returned.
func (b *branch) placed(_ *group, c *candidate) {
	c.mine++
	for _, p := range c.path {
		p.mine++
	}
	leaf := c.path[len(c.path)-1]
	heap.Fix(&leaf.leaves, 0)
}
