package orchestrator

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// A slot whose task was moved is left alone for rested: whatever undid the move,
// or made another one seem good, may do so again. Nothing is moved for less
// than unbalanced tasks more in one place than in another.
const (
	rested     = 10 * time.Minute
	unbalanced = 2
)

// balancer moves tasks of a service to nodes that have fewer of them.
type balancer struct {
	*plan
	spread []string           // keys of the service's preferences
	on     map[string][]*slot // by node
	ending map[string]int     // tasks that have yet to end, by node: the scheduler sees them, too
	nodes  []*api.Node        // that have tasks of the service, or may take some
	most   int                // replicas on a node; 0: any
	wake   time.Time          // when the first slot has rested that might have been moved
}

// balances reports whether the service wants it, and is at rest: all that it
// should have runs, and no update is under way or waits.
func (p *plan) balances() bool {
	if p.spec.Global || p.Service.Spec.Labels[api.RebalanceLabel] == "" || len(p.out.Create)+len(p.out.Desired) > 0 || p.out.Update != nil {
		return false
	}
	policy, err := api.ParsePolicy(p.Service.Spec.Labels)
	if err != nil || !policy.Rebalance {
		return false
	}
	st := p.Service.UpdateStatus
	return st == nil || st.State == swarm.UpdateStateCompleted || st.State == swarm.UpdateStateRollbackCompleted
}

// rebalance moves as many tasks as may be under way at once, if nodes differ by
// two or more. A move is a replacement that the scheduler puts where there are fewest.
func (p *plan) rebalance() {
	if !p.balances() {
		return
	}
	config := updateConfig(&p.Service.Spec, false)
	b := &balancer{plan: p, on: map[string][]*slot{}, ending: map[string]int{}}
	for _, s := range p.slots {
		t := p.live(s)
		for _, o := range slices.Concat(s.tasks, s.leaving) {
			if o != t && !ended(o) {
				b.ending[o.NodeID]++
			}
		}
		switch {
		case t == nil:
			continue
		case !p.running(t) || p.stale(t) || p.evicted(t):
			return
		}
		if end := since(t).Add(config.Delay); t.MovedFrom != "" && p.waits(end, config.Delay) {
			p.again(end)
			return
		}
		b.on[t.NodeID] = append(b.on[t.NodeID], s)
	}
	b.prepare()
	moves := math.MaxInt32
	if config.Parallelism > 0 {
		moves = int(min(config.Parallelism, math.MaxInt32))
	}
	for range moves {
		s := b.move(b.nodes, b.spread)
		if s == nil || p.full() {
			break
		}
		p.relocate(s, config.Order)
	}
	if len(p.moved) == 0 && !b.wake.IsZero() {
		p.again(b.wake)
	}
}

func (b *balancer) prepare() {
	if pl := b.spec.Placement; pl != nil {
		b.most = int(pl.MaxReplicas)
		for _, pref := range pl.Preferences {
			if pref.Spread != nil {
				b.spread = append(b.spread, pref.Spread.SpreadDescriptor)
			}
		}
	}
	for id, n := range b.Nodes {
		if len(b.on[id]) > 0 || b.takes(n) {
			b.nodes = append(b.nodes, n)
		}
	}
	slices.SortFunc(b.nodes, func(x, y *api.Node) int { return strings.Compare(x.ID, y.ID) })
}

// takes reports whether the node may have more of the service, for all that the plan knows.
func (b *balancer) takes(n *api.Node) bool {
	return n.Status.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive && b.suits(n) &&
		(b.most == 0 || len(b.on[n.ID]) < b.most)
}

// share is the nodes that have a preference's value in common, or a single node.
type share struct {
	value string
	nodes []*api.Node
	tasks int
	more  int // that have yet to end
}

func (b *balancer) shares(nodes []*api.Node, spread []string) []*share {
	by := map[string]*share{}
	var out []*share
	for _, n := range nodes {
		value := n.ID
		if len(spread) > 0 {
			value, _ = api.NodeAttribute(n, spread[0])
		}
		s := by[value]
		if s == nil {
			s = &share{value: value}
			by[value] = s
			out = append(out, s)
		}
		s.nodes = append(s.nodes, n)
		s.tasks += len(b.on[n.ID])
		s.more += b.ending[n.ID]
	}
	slices.SortFunc(out, func(x, y *share) int { return cmp.Or(cmp.Compare(x.tasks, y.tasks), strings.Compare(x.value, y.value)) })
	return out
}

// move finds the next move, the outermost preference first, counts it as done, and
// returns the slot; nil: all is balanced.
func (b *balancer) move(nodes []*api.Node, spread []string) *slot {
	shares := b.shares(nodes, spread)
	for i := len(shares) - 1; i > 0; i-- {
		for _, to := range shares[:i] {
			if shares[i].tasks-to.tasks < unbalanced {
				break
			}
			if shares[i].tasks-to.tasks-to.more < unbalanced {
				continue
			}
			if s := b.between(shares[i].nodes, to.nodes); s != nil {
				return s
			}
		}
	}
	if len(spread) == 0 {
		return nil
	}
	for _, s := range shares {
		if moved := b.move(s.nodes, spread[1:]); moved != nil {
			return moved
		}
	}
	return nil
}

// between moves a task from the fullest of some nodes to the emptiest of others
// that takes it.
func (b *balancer) between(from, to []*api.Node) *slot {
	from, to = slices.Clone(from), slices.Clone(to)
	slices.SortStableFunc(from, func(x, y *api.Node) int { return cmp.Compare(len(b.on[y.ID]), len(b.on[x.ID])) })
	slices.SortStableFunc(to, func(x, y *api.Node) int {
		return cmp.Compare(len(b.on[x.ID])+b.ending[x.ID], len(b.on[y.ID])+b.ending[y.ID])
	})
	for _, f := range from {
		at, s := b.movable(f.ID)
		if s == nil {
			continue
		}
		t := b.live(s)
		for _, n := range to {
			if b.takes(n) && b.fits(t, n.ID) {
				b.on[f.ID] = slices.Delete(b.on[f.ID], at, at+1)
				b.on[n.ID] = append(b.on[n.ID], s)
				return s
			}
		}
		return nil // its others are alike
	}
	return nil
}

// fits reports whether the node has a place for the task, and notes where there is none.
func (b *balancer) fits(t *api.Task, node string) bool {
	if b.Fits == nil || b.Fits(t, node) {
		return true
	}
	b.out.Refused = append(b.out.Refused, node)
	return false
}

// movable is the node's slot of the highest number that has rested.
func (b *balancer) movable(node string) (int, *slot) {
	on := b.on[node]
	for i := len(on) - 1; i >= 0; i-- {
		until := on[i].restsUntil()
		rests := b.waits(until, rested)
		if !rests && !b.moved[b.live(on[i]).ID] {
			return i, on[i]
		}
		if rests && (b.wake.IsZero() || until.Before(b.wake)) {
			b.wake = until
		}
	}
	return 0, nil
}

// restsUntil is when the slot may be moved again.
func (s *slot) restsUntil() time.Time {
	var last time.Time
	for _, t := range s.tasks {
		if at := t.Born(); t.MovedFrom != "" && at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		return last
	}
	return last.Add(rested)
}

// relocate replaces the slot's task, in the order of the service's updates.
func (p *plan) relocate(s *slot, order swarm.UpdateOrder) {
	old := p.live(s)
	if p.moved == nil {
		p.moved = map[string]bool{}
	}
	p.moved[old.ID] = true
	var t *api.Task
	if order == swarm.UpdateOrderStartFirst {
		t = p.newTask(s)
	} else {
		p.end(s)
		t = p.create(s, 0)
	}
	t.MovedFrom = old.NodeID
}

// standIn reports whether t still does the work of a slot whose live task was
// made to take it over, on another node, and does not run yet.
func (p *plan) standIn(live, t *api.Task) bool {
	return live.MovedFrom != "" && live.MovedFrom == t.NodeID && p.running(t) && !p.running(live) && !p.evicted(t) && !p.stale(t)
}

// abandon gives up moves that came to nothing while the task that was to be
// moved still runs: it stays where it is.
func (p *plan) abandon() {
	for _, s := range p.slots {
		live := p.live(s)
		if live == nil || live.MovedFrom == "" || p.stale(live) || p.running(live) {
			continue
		}
		lost := api.Final(live.Status.State) || p.evicted(live)
		if !lost && live.NodeID == "" {
			if late := live.Born().Add(patience); p.waits(late, patience) {
				p.again(late)
			} else {
				lost = true // the room has gone meanwhile
			}
		}
		if lost && slices.ContainsFunc(s.tasks, func(t *api.Task) bool { return t != live && p.wanted(t) && p.standIn(live, t) }) {
			p.want(live, swarm.TaskStateShutdown)
		}
	}
}
