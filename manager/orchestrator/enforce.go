package orchestrator

import (
	"cmp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Why tasks have to leave their nodes; the first is Docker's sentence.
const (
	whyConstraints = "assigned node no longer meets constraints"
	whyResources   = "assigned node no longer has the reserved "
	whyMoved       = "moved to balance the service"
)

// Enforce says which of a node's tasks it has no room for any more, and why, by
// the tasks' ids: those of the lowest priority, of these the newest. A node whose resources
// are not known keeps all.
func Enforce(n *api.Node, tasks []*api.Task) map[string]string {
	have := n.Description.Resources
	if have.NanoCPUs == 0 && have.MemoryBytes == 0 {
		return nil
	}
	tasks = slices.DeleteFunc(slices.Clone(tasks), func(t *api.Task) bool { return !reserves(t) })
	slices.SortFunc(tasks, func(a, b *api.Task) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority(), a.Spec.Priority()), a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	left := newRest(&have)
	var out map[string]string
	for _, t := range tasks {
		if lacks := left.take(t); lacks != "" {
			if out == nil {
				out = map[string]string{}
			}
			out[t.ID] = whyResources + lacks
		}
	}
	return out
}

// reserves reports whether a task holds something on its node, and is to go on.
func reserves(t *api.Task) bool {
	r := t.Spec.Resources
	return (r != nil && r.Reservations != nil || len(t.GenericResources) > 0) && t.NodeID != "" &&
		api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) && !api.Final(t.Status.State) &&
		!api.ToldToEnd(t.DesiredState) && t.Evicted == ""
}

// rest is what of a node's resources is left.
type rest struct {
	cpu, memory int64
	numbers     map[string]int64
	names       map[swarm.NamedGenericResource]bool
}

func newRest(have *swarm.Resources) *rest {
	r := &rest{cpu: have.NanoCPUs, memory: have.MemoryBytes, numbers: map[string]int64{}, names: map[swarm.NamedGenericResource]bool{}}
	for _, g := range have.GenericResources {
		switch {
		case g.NamedResourceSpec != nil:
			r.names[*g.NamedResourceSpec] = true
		case g.DiscreteResourceSpec != nil:
			r.numbers[g.DiscreteResourceSpec.Kind] += g.DiscreteResourceSpec.Value
		}
	}
	return r
}

// take takes what the task has, or nothing, and says what is missing.
func (r *rest) take(t *api.Task) (lacks string) {
	var want swarm.Resources
	if t.Spec.Resources != nil && t.Spec.Resources.Reservations != nil {
		want = *t.Spec.Resources.Reservations
	}
	switch {
	case want.NanoCPUs > 0 && want.NanoCPUs > r.cpu:
		return "CPUs"
	case want.MemoryBytes > 0 && want.MemoryBytes > r.memory:
		return "memory"
	}
	for _, g := range t.GenericResources {
		switch n, d := g.NamedResourceSpec, g.DiscreteResourceSpec; {
		case n != nil && !r.names[*n]:
			return n.Kind + " " + n.Value
		case d != nil && d.Value > r.numbers[d.Kind]:
			return d.Kind
		}
	}
	r.cpu, r.memory = r.cpu-want.NanoCPUs, r.memory-want.MemoryBytes
	for _, g := range t.GenericResources {
		if n := g.NamedResourceSpec; n != nil {
			delete(r.names, *n)
		} else if d := g.DiscreteResourceSpec; d != nil {
			r.numbers[d.Kind] -= d.Value
		}
	}
	return ""
}

// toldToLeave reports whether the task has to leave its node for reasons that lie
// in what else is there.
func (p *plan) toldToLeave(t *api.Task) bool {
	return t.Evicted != "" || p.Evict != nil && p.Evict(t.ID) != ""
}

// explain gives the tasks that the plan ends, though nothing is wrong with them,
// the reason.
func (p *plan) explain() {
	if len(p.out.Desired) == 0 {
		return
	}
	for _, s := range p.slots {
		for _, t := range s.tasks {
			if p.out.Desired[t.ID] != swarm.TaskStateShutdown || t.Evicted != "" || api.Final(t.Status.State) {
				continue
			}
			if why := p.why(s, t); why != "" {
				if p.out.Evicted == nil {
					p.out.Evicted = map[string]string{}
				}
				p.out.Evicted[t.ID] = why
			}
		}
	}
}

func (p *plan) why(s *slot, t *api.Task) string {
	n := p.Nodes[t.NodeID]
	switch {
	case n == nil || n.Status.State == swarm.NodeStateDown || n.Spec.Availability == swarm.NodeAvailabilityDrain:
		return ""
	case p.moved[t.ID]:
		return whyMoved
	case p.Evict != nil && p.Evict(t.ID) != "":
		return p.Evict(t.ID)
	case !api.MatchAll(p.constraintsOf(p.rules(t)), n):
		return whyConstraints
	case p.stale(t):
		return ""
	}
	if live := p.live(s); live != nil && live.MovedFrom == t.NodeID {
		return whyMoved
	}
	return ""
}

// enforce looks which tasks nodes have no room for any more, on all nodes or on one.
func (s *session) enforce(view *store.View, node string) {
	by := map[string][]*api.Task{}
	all := store.List[*api.Task](view)
	if node != "" {
		all = store.List[*api.Task](view, store.ByNode(node))
	}
	for t := range all {
		if node != "" {
			delete(s.evict, t.ID)
		}
		if reserves(t) {
			by[t.NodeID] = append(by[t.NodeID], t)
		}
	}
	for id, tasks := range by {
		if n := s.nodes[id]; n != nil {
			for task, why := range Enforce(n, tasks) {
				s.evict[task] = why
			}
		}
	}
	for id := range s.evict {
		if t := store.Get[*api.Task](view, id); t != nil {
			s.agenda.add(t.ServiceID)
		}
	}
}
