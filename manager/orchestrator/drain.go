package orchestrator

import (
	"math"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// patience is how long a task that leaves a drained node, or has left it, is
// waited for by the others: one whose replacement can't come up must not keep
// the node from being emptied.
const patience = time.Minute

// drain decides which of the running tasks on drained nodes leave now: as many at
// a time as the update policy allows, start-first if it says so. The others stay
// until it is their turn. What no node can take holds nobody up: a drained node
// becomes empty in the end.
func (p *plan) drain(slots []*slot) {
	if p.policy().Condition == swarm.RestartPolicyConditionNone {
		return // nothing comes in their place
	}
	var leave []*slot
	for _, s := range slots {
		if t := p.live(s); t != nil && p.running(t) && p.drained(t) && !p.tried(s, t) {
			leave = append(leave, s)
		}
	}
	if len(leave) == 0 {
		return
	}
	config := updateConfig(&p.Service.Spec, p.Service.UpdateStatus != nil && p.Service.UpdateStatus.State == swarm.UpdateStateRollbackStarted)
	room := math.MaxInt
	if config.Parallelism > 0 {
		room = int(min(config.Parallelism, math.MaxInt32))
		for _, s := range slots {
			if late, moving := p.moving(s); moving {
				room--
				p.again(late)
			}
		}
	}
	for i, s := range leave {
		switch {
		case i >= room || p.full():
			p.stay(p.live(s))
			p.out.Waits = true
		case config.Order == swarm.UpdateOrderStartFirst:
			p.stay(p.live(s))
			p.newTask(s)
			p.out.Waits = true
		}
	}
}

func (p *plan) stay(t *api.Task) {
	if p.staying == nil {
		p.staying = map[string]bool{}
	}
	p.staying[t.ID] = true
}

// drained reports whether the task is on a node that is being emptied, and can be.
func (p *plan) drained(t *api.Task) bool {
	n := p.Nodes[t.NodeID]
	return n != nil && !p.toldToLeave(t) && n.Status.State != swarm.NodeStateDown && n.Spec.Availability == swarm.NodeAvailabilityDrain
}

// tried reports whether a task that was to take over from t has ended.
func (p *plan) tried(s *slot, t *api.Task) bool {
	for _, o := range s.tasks {
		if o == t {
			return false
		}
		if byItself(o) {
			return true
		}
	}
	return false
}

// moving reports whether a slot that had a task on a node is between two because the
// plan had one end, and until when that is waited for.
func (p *plan) moving(s *slot) (late time.Time, ok bool) {
	live := p.live(s)
	if live == nil || p.running(live) || api.Final(live.Status.State) || p.unplaceable(live) {
		return late, false
	}
	late = live.Born().Add(patience)
	for _, t := range s.tasks {
		if t != live && mayHaveRun(t) {
			return late, !byItself(t) && p.waits(late, patience)
		}
	}
	return late, false
}

// unplaceable reports whether the scheduler has found no node for a task.
func (p *plan) unplaceable(t *api.Task) bool {
	return t.NodeID == "" && t.Status.State == swarm.TaskStatePending && t.Status.Err != ""
}

// stuck reports whether a task that shall start before another ends gets no node, or no
// address, meanwhile: it may be the other's that it waits for.
func (p *plan) stuck(t *api.Task) bool {
	return p.unplaceable(t) || t.Status.State == swarm.TaskStateNew && t.Status.Err != ""
}

// covers reports whether t, on a drained node, still does the work of a slot
// whose live task was made to take it over and does not run yet.
func (p *plan) covers(s *slot, live, t *api.Task) bool {
	if !p.running(t) || !p.drained(t) || p.running(live) || p.stuck(live) || api.Rank(live.DesiredState) > api.Rank(swarm.TaskStateRunning) {
		return false
	}
	first := live // of those that were to take over
	for _, o := range s.tasks {
		if o == t {
			break
		}
		first = o
	}
	late := first.Born().Add(patience)
	if !p.waits(late, patience) {
		return false
	}
	p.again(late)
	p.out.Waits = true
	return true
}
