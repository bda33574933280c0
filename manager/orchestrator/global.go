package orchestrator

import (
	"maps"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// global keeps a task on every node that the service may run on.
func (p *plan) global() {
	have := make(map[string]*slot, len(p.slots))
	for _, s := range p.slots {
		have[s.node] = s
	}
	for _, id := range slices.Sorted(maps.Keys(p.Nodes)) {
		if p.full() {
			return
		}
		n, s := p.Nodes[id], have[id]
		switch {
		case n.Spec.Availability == swarm.NodeAvailabilityDrain || n.Status.State == swarm.NodeStateDown || !p.suits(n):
			if s != nil {
				p.end(s)
			}
		case s != nil && (p.live(s) != nil || p.finished(s)):
			p.tend(s)
		case n.Spec.Availability == swarm.NodeAvailabilityActive && n.Status.State == swarm.NodeStateReady:
			if s == nil {
				s = &slot{node: id}
			}
			p.create(s, 0)
		}
	}
	for _, s := range p.slots {
		if p.Nodes[s.node] == nil {
			p.removeAll(s.tasks)
		}
	}
}

// end ends all tasks of a slot.
func (p *plan) end(s *slot) {
	for _, t := range s.tasks {
		if api.Rank(p.desired(t)) < api.Rank(swarm.TaskStateShutdown) && p.full() {
			return
		}
		p.want(t, swarm.TaskStateShutdown)
	}
}
