package orchestrator

import (
	"maps"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// global keeps a task on every node that the service may run on.
func (p *plan) global() {
	var constraints []api.Constraint
	if pl := p.Service.Spec.TaskTemplate.Placement; pl != nil {
		constraints, _ = api.ParseConstraints(pl.Constraints) // checked when the service was written
	}
	have := map[string]*slot{}
	for _, s := range p.slots {
		have[s.node] = s
	}
	for _, id := range slices.Sorted(maps.Keys(p.Nodes)) {
		n, s := p.Nodes[id], have[id]
		switch {
		case n.Spec.Availability == swarm.NodeAvailabilityDrain || !api.MatchAll(constraints, n):
			if s != nil {
				p.shutdownAll(s)
			}
		case n.Status.State == swarm.NodeStateDown:
			if s != nil {
				p.shutdownAll(s)
			}
		case s == nil || !p.tend(s) && p.settled(s):
			if n.Spec.Availability == swarm.NodeAvailabilityActive && n.Status.State == swarm.NodeStateReady {
				p.create(&slot{node: id}, nil, 0)
			}
		}
	}
	for _, s := range p.slots {
		if p.Nodes[s.node] == nil {
			for _, t := range s.tasks {
				p.want(t, swarm.TaskStateRemove)
			}
		}
	}
}

// settled reports whether all of the slot's tasks have ended.
func (p *plan) settled(s *slot) bool {
	return !slices.ContainsFunc(s.tasks, func(t *api.Task) bool { return !ended(t) && !p.lost(t) })
}

func (p *plan) shutdownAll(s *slot) {
	for _, t := range s.tasks {
		p.want(t, swarm.TaskStateShutdown)
	}
}
