package orchestrator

import (
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// maxHistory bounds what a restart policy can make the store keep, per slot.
const maxHistory = 1000

// reapRemoved deletes the tasks that were to be removed and have ended, or whose
// node is gone.
func (p *plan) reapRemoved() {
	if !p.removing {
		return
	}
	for _, t := range p.Tasks {
		if t.DesiredState == swarm.TaskStateRemove && (ended(t) || t.NodeID != "" && p.Nodes[t.NodeID] == nil) {
			if p.full() {
				return
			}
			p.out.Delete = append(p.out.Delete, t.ID)
		}
	}
}

// orphan gives up tasks that nobody will hear of again. Whoever removes a node ends
// the tasks that it has; one may have come there at the same time, unseen by them.
func (p *plan) orphan() {
	for _, t := range p.Tasks {
		if t.NodeID == "" || api.Final(t.Status.State) || p.Nodes[t.NodeID] != nil {
			continue
		}
		if p.full() {
			return
		}
		p.out.Orphaned = append(p.out.Orphaned, t.ID)
	}
}

// orphaned are the tasks to be orphaned that are not deleted.
func (o *Output) orphaned() map[string]bool {
	if len(o.Orphaned) == 0 {
		return nil
	}
	ids := make(map[string]bool, len(o.Orphaned))
	for _, id := range o.Orphaned {
		ids[id] = true
	}
	for _, id := range o.Delete {
		delete(ids, id)
	}
	return ids
}

// reapHistory deletes, in each slot, ended tasks beyond the history that is
// kept, oldest first, and those that no node ever had. What restart policy and
// update look at is kept longer: by what it replaced, an update knows its task.
func (p *plan) reapHistory() {
	if p.History < 0 {
		return
	}
	for _, t := range p.vain {
		if end := t.Born().Add(rested); p.waits(end, rested) {
			p.again(end)
		} else if !p.full() {
			p.out.Delete = append(p.out.Delete, t.ID)
		}
	}
	keep := int(p.History)
	if r := p.policy(); r.MaxAttempts != nil && *r.MaxAttempts > 0 {
		keep = max(keep, int(min(*r.MaxAttempts, maxHistory))+1)
	}
	updating := p.Service.UpdateStatus != nil && underWay(p.Service.UpdateStatus.State) || p.out.Update != nil
	if updating {
		keep = max(keep, 2)
	}
	for _, s := range p.slots {
		keep, last := keep, len(s.tasks)-1
		if s.history && len(s.tasks) <= keep {
			last = min(last, 0) // all others were on a node, and it is not their turn
		}
		if last > 0 && quick(s.tasks[1]) {
			keep = max(keep, p.forgiven()+1) // to know a row of failures by
		}
		for i := last; i >= 0; i-- {
			t := s.tasks[i]
			if t.DesiredState != swarm.TaskStateShutdown || !ended(t) || mayHaveRun(t) && (i == 0 || i < keep) || updating && i == 1 && p.stale(t) {
				continue
			}
			if p.full() {
				return
			}
			p.out.Delete = append(p.out.Delete, t.ID)
		}
	}
}
