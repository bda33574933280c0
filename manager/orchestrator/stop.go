package orchestrator

import (
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// stop ends all tasks of a service that is stopped. What completed stays, and
// is still done when the service starts again. With restart condition "none" the
// others are removed: as history they would stand for a run that is over.
func (p *plan) stop() {
	to := swarm.TaskStateShutdown
	if p.policy().Condition == swarm.RestartPolicyConditionNone {
		to = swarm.TaskStateRemove
	}
	for _, s := range p.slots {
		for _, t := range s.tasks {
			switch {
			case !p.wanted(t) || p.Service.Job() && api.Final(t.Status.State):
			case p.full():
				return
			case byItself(t):
				p.want(t, swarm.TaskStateShutdown)
			default:
				p.want(t, to)
			}
		}
	}
}
