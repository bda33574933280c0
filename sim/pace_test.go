package sim

import (
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// patience is how long an update policy waits for what replaces a task of a drained
// node, as the orchestrator has it.
const patience = time.Minute

// pace checks that a service has as many tasks that run as its update policy allows,
// but for those that faults have ended: of its slots, no more than its parallelism are
// between two tasks because a task that ran was told to end; with start-first, none.
type pace struct {
	*holdings
	steady func() bool // no clock is wrong: waits by the clock count
	down   map[string]time.Time
	drain  map[string]time.Time
	up     map[slot]map[string]bool      // tasks that run and shall
	wasUp  map[slot]map[string]time.Time // until when others did
	taken  map[slot]loss
	told   []*api.Task // to end, though they ran
	tasks  map[string]*api.Task
}

// loss is a slot's whose task was told to end.
type loss struct {
	at      time.Time
	drained bool
}

func newPace(h *holdings, steady func() bool) *pace {
	return &pace{
		holdings: h, steady: steady, down: map[string]time.Time{}, drain: map[string]time.Time{},
		up: map[slot]map[string]bool{}, wasUp: map[slot]map[string]time.Time{}, taken: map[slot]loss{}, tasks: map[string]*api.Task{},
	}
}

// change follows an object; it comes after holdings.
func (p *pace) change(c store.Change) {
	if c.Kind == store.KindNode {
		for _, o := range []any{c.Old, c.New} {
			n, _ := o.(*api.Node)
			if n == nil || n.Status.State == swarm.NodeStateDown {
				p.down[c.ID] = time.Now()
			}
			if n != nil && n.Spec.Availability == swarm.NodeAvailabilityDrain {
				p.drain[c.ID] = time.Now()
			}
		}
		return
	}
	was, _ := c.Old.(*api.Task)
	is, _ := c.New.(*api.Task)
	delete(p.tasks, c.ID)
	if is != nil {
		p.tasks[c.ID] = is
	}
	if was != nil && serves(was) && (is == nil || !serves(is)) {
		s := slotOf(was)
		delete(p.up[s], was.ID)
		if p.wasUp[s] == nil {
			p.wasUp[s] = map[string]time.Time{}
		}
		p.wasUp[s][was.ID] = time.Now()
		if is != nil && is.Status.State == swarm.TaskStateRunning && is.DesiredState == swarm.TaskStateShutdown {
			p.told = append(p.told, is)
		}
	}
	if is == nil || is.JobIteration != nil {
		return
	}
	s := slotOf(is)
	switch {
	case serves(is):
		if p.up[s] == nil {
			p.up[s] = map[string]bool{}
		}
		p.up[s][is.ID] = true
		delete(p.taken, s)
	case ownEnd(is), api.Rank(is.Status.State) < api.Rank(swarm.TaskStateAssigned) && is.Status.Err != "", is.DesiredState == swarm.TaskStateRemove:
		delete(p.taken, s) // it is without a task for another reason now
	}
}

func serves(t *api.Task) bool {
	return t.Status.State == swarm.TaskStateRunning && t.JobIteration == nil && !api.ToldToEnd(t.DesiredState)
}

// ownEnd reports whether a task has ended without having been told to.
func ownEnd(t *api.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateComplete, swarm.TaskStateOrphaned:
		return true
	}
	return false
}

// look says which tasks should not have been told to end yet.
func (p *pace) look() string {
	defer func() { p.told = p.told[:0] }()
	services := map[string]bool{}
	for _, t := range p.told {
		what, counts := p.judge(t)
		if what != "" {
			return fmt.Sprintf("task %s of %s, which ran, is told to end: %s; %s", t.ID, t.Spec.ServiceName, what, p.describe(p.services[t.ServiceID]))
		}
		if counts {
			p.taken[slotOf(t)] = loss{time.Now(), p.was(p.drain, t.NodeID)}
			services[t.ServiceID] = true
		}
	}
	for id := range services {
		s := p.services[id]
		most := config(s).Parallelism
		var now []slot
		for at, l := range p.taken {
			if at.service != id || time.Since(l.at) >= patience || l.drained && !p.steady() || p.was(p.down, at.node) || down(p.nodes[at.node]) {
				continue
			}
			now = append(now, at)
		}
		if most > 0 && uint64(len(now)) > most {
			return fmt.Sprintf("%s: %d of its slots have no task that runs because it was told to end, with a parallelism of %d: %v; %s", s.Spec.Name, len(now), most, now, p.describe(s))
		}
	}
	return ""
}

// describe says how a service and its tasks stand.
func (p *pace) describe(s *api.Service) string {
	out := fmt.Sprintf("%+v, version %d", s.UpdateStatus, s.SpecVersion)
	for _, t := range p.tasks {
		if t.ServiceID == s.ID {
			n := &api.Node{}
			if p.nodes[t.NodeID] != nil {
				n = p.nodes[t.NodeID]
			}
			out += fmt.Sprintf("\n%s.%d on %s (%s, %s, %s, %v) of version %d made %s: %s (%s %s), to be %s; evicted: %s; it asks for %v", t.ID, t.Slot, t.NodeID, n.Status.State, n.Spec.Availability, n.Role, n.Spec.Labels, t.SpecVersion,
				t.CreatedAt.Format("15:04:05.000"), t.Status.State, t.Status.Timestamp.Format("15:04:05.000"), t.Status.Err, t.DesiredState, t.Evicted, placement(t.Spec.Placement).Constraints)
		}
	}
	return out
}

func config(s *api.Service) swarm.UpdateConfig {
	c := s.Spec.UpdateConfig
	if st := s.UpdateStatus; st != nil && st.State == swarm.UpdateStateRollbackStarted {
		c = s.Spec.RollbackConfig
	}
	if c == nil {
		return swarm.UpdateConfig{Parallelism: 1}
	}
	return *c
}

// was reports whether a node is, or was of late, what a map says.
func (p *pace) was(when map[string]time.Time, node string) bool {
	at, ok := when[node]
	return ok && time.Since(at) <= recently
}

func down(n *api.Node) bool { return n != nil && n.Status.State == swarm.NodeStateDown }

// judge says why a task that ran may not have been told to end now, and whether its slot
// counts as taken away by the update policy.
func (p *pace) judge(t *api.Task) (what string, counts bool) {
	s, n := p.services[t.ServiceID], p.nodes[t.NodeID]
	drained := n != nil && n.Spec.Availability == swarm.NodeAvailabilityDrain || p.was(p.drain, t.NodeID)
	switch {
	case s == nil || s.Stopped() || s.Job():
		return "", false
	case n == nil || down(n) || p.was(p.down, t.NodeID):
		return "", false
	case t.Evicted != "" && t.Evicted != whyMoved:
		return "", false // another's room now, or it may not be there any more
	case t.Spec.Global && (drained || !api.MatchAll(constraintsOf(s), n)):
		return "", false
	case p.covered(t):
		return "", false
	}
	st := s.UpdateStatus
	switch {
	case drained:
	case config(s).Order == swarm.UpdateOrderStartFirst:
		return "no other runs in its slot, and the order is start-first", true
	case st != nil && (st.State == swarm.UpdateStatePaused || st.State == swarm.UpdateStateRollbackPaused):
		return "the update is " + string(st.State), true
	}
	return "", !drained || config(s).Order != swarm.UpdateOrderStartFirst
}

// whyMoved is what the orchestrator says of tasks that it moves to balance a service.
const whyMoved = "moved to balance the service"

func constraintsOf(s *api.Service) []api.Constraint {
	cs, _ := api.ParseConstraints(placement(s.Spec.TaskTemplate.Placement).Constraints) // checked when it was written
	return cs
}

// covered reports whether another task of the slot runs, or did a moment ago.
func (p *pace) covered(t *api.Task) bool {
	s := slotOf(t)
	if len(p.up[s]) > 0 {
		return true
	}
	for id, at := range p.wasUp[s] {
		if id != t.ID && time.Since(at) <= recently {
			return true
		}
	}
	return false
}
