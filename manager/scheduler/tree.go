package scheduler

import (
	"cmp"
	"container/heap"
	"strings"
	"time"

	"github.com/legion-swarm/legion/api"
)

// candidate is a node that may take a task of the group.
type candidate struct {
	*node
	failing bool
	mine    int     // tasks of the service on it
	liking  int     // soft rules met
	score   float64 // of strategies other than spread; the least comes first
	path    []*branch
}

// before ranks candidates: nodes where the group does not keep failing, that
// meet most preferences, by the strategy, with few of the service's tasks, with
// few tasks.
func (c *candidate) before(o *candidate) bool {
	switch {
	case c.failing != o.failing:
		return !c.failing
	case c.liking != o.liking:
		return c.liking > o.liking
	case c.score != o.score:
		return c.score < o.score
	}
	return cmp.Or(cmp.Compare(c.mine, o.mine), cmp.Compare(c.tasks, o.tasks), strings.Compare(c.ID, o.ID)) < 0
}

// placed counts a task on the candidate, which best has just returned.
func (c *candidate) placed(g *group) {
	c.mine++
	g.rank(c)
	for _, b := range c.path {
		b.mine++
	}
	heap.Fix(&c.path[len(c.path)-1].leaves, 0)
}

// branch is the set of candidates that share the values of the outer spread
// preferences; the innermost branches have a heap of them.
type branch struct {
	byValue  map[string]*branch
	children []*branch
	mine     int // tasks of the service below
	full     bool
	leaves   leaves
}

type leaves []*candidate

func (l leaves) Len() int           { return len(l) }
func (l leaves) Less(i, j int) bool { return l[i].before(l[j]) }
func (l leaves) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *leaves) Push(x any)        { *l = append(*l, x.(*candidate)) }
func (l *leaves) Pop() any {
	last := len(*l) - 1
	c := (*l)[last]
	*l = (*l)[:last]
	return c
}

// tree ranks all nodes that may take a task of the group, and counts the others.
// Nodes that may not still count for the balance of their branch.
func (s *State) tree(g *group, now time.Time) (*branch, *refusals) {
	root, refused := &branch{}, &refusals{}
	for _, at := range s.loads {
		for _, n := range at {
			mine := n.of(g.service)
			if f := g.refusal(n); f != passed {
				refused[f]++
				if mine > 0 && len(g.spread) > 0 {
					root.insert(g.spread, &candidate{node: n, mine: mine}, false)
				}
				continue
			}
			c := &candidate{node: n, failing: n.failing(g.key, now), mine: mine}
			g.rank(c)
			root.insert(g.spread, c, true)
		}
	}
	root.heapify()
	return root, refused
}

func (b *branch) insert(spread []string, c *candidate, open bool) {
	b.mine += c.mine
	c.path = append(c.path, b)
	if len(spread) == 0 {
		if open {
			b.leaves = append(b.leaves, c)
		}
		return
	}
	value, _ := api.NodeAttribute(c.Node, spread[0])
	child := b.byValue[value]
	if child == nil {
		child = &branch{}
		if b.byValue == nil {
			b.byValue = map[string]*branch{}
		}
		b.byValue[value] = child
		b.children = append(b.children, child)
	}
	child.insert(spread[1:], c, open)
}

func (b *branch) heapify() {
	heap.Init(&b.leaves)
	for _, c := range b.children {
		c.heapify()
	}
}

// best returns the first candidate of the branch that has the fewest of the
// service's tasks, nil when none is left. Candidates that have filled up
// meanwhile are dropped and counted.
func (b *branch) best(g *group, refused *refusals) *candidate {
	for len(b.leaves) > 0 {
		c := b.leaves[0]
		f := g.refusal(c.node)
		if f == passed {
			return c
		}
		refused[f]++
		heap.Pop(&b.leaves)
	}
	for {
		var least *branch
		for _, c := range b.children {
			if !c.full && (least == nil || c.mine < least.mine) {
				least = c
			}
		}
		if least == nil {
			b.full = true
			return nil
		}
		if c := least.best(g, refused); c != nil {
			return c
		}
	}
}
