package orchestrator

import (
	"github.com/moby/moby/api/types/swarm"
)

// Reap returns the tasks that can be deleted: those to be removed that have
// ended, and in each slot those beyond the history that is kept (negative: all
// are), oldest first.
func Reap(in Input, history int64) []string {
	var gone []string
	p := &plan{Input: in}
	for _, t := range in.Tasks {
		if t.DesiredState == swarm.TaskStateRemove && (ended(t) || in.Nodes[t.NodeID] == nil) {
			gone = append(gone, t.ID)
		}
	}
	if in.Service == nil || history < 0 {
		return gone
	}
	p.group()
	keep := int(history)
	if r := in.Service.Spec.TaskTemplate.RestartPolicy; r != nil && r.MaxAttempts != nil {
		keep = max(keep, int(min(*r.MaxAttempts, maxHistory))+1) // the policy counts them
	}
	for _, s := range p.slots {
		for i, t := range s.tasks {
			if i > 0 && i >= keep && t.DesiredState == swarm.TaskStateShutdown && ended(t) {
				gone = append(gone, t.ID)
			}
		}
	}
	return gone
}

// maxHistory bounds what a restart policy can make the store keep, per slot.
const maxHistory = 1000
