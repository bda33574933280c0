package orchestrator

import (
	"maps"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// globalJob has every node that the job may run on complete it once in each
// iteration, those that come later too.
func (p *plan) globalJob() {
	have := make(map[string]*slot, len(p.slots))
	for _, s := range p.slots {
		if p.Nodes[s.node] == nil {
			p.removeAll(s.tasks)
			continue
		}
		have[s.node] = s
	}
	for _, id := range slices.Sorted(maps.Keys(p.Nodes)) {
		if p.full() {
			return
		}
		n, s := p.Nodes[id], have[id]
		if n.Spec.Availability == swarm.NodeAvailabilityDrain || n.Status.State == swarm.NodeStateDown || !p.suits(n) {
			p.leave(s)
			continue
		}
		if s == nil {
			s = &slot{node: id}
		}
		switch st, at := p.stand(s); {
		case st == waiting:
			p.again(at)
		case st == open && n.Spec.Availability == swarm.NodeAvailabilityActive && n.Status.State == swarm.NodeStateReady:
			p.try(s)
		}
	}
}

// leave ends what runs in a slot whose node may not have it; what completed is
// done.
func (p *plan) leave(s *slot) {
	if s == nil {
		return
	}
	for _, t := range p.tries(s) {
		if !api.Final(t.Status.State) && p.wanted(t) {
			p.want(t, swarm.TaskStateShutdown)
		}
	}
}
