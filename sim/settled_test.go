package sim

import (
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/allocator"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/manager/rotator"
	"github.com/legion-swarm/legion/manager/scheduler"
	"github.com/legion-swarm/legion/store"
)

// ahead is for how long nothing more may be going to happen on a settled swarm: longer
// than what waits for something waits, clocks that differ included.
const ahead = patience + patience/2

// unsettled says what is not yet as users asked for, or will change by itself.
func (c *cluster) unsettled() string { return c.unsettledFor(ahead) }

// unsettledFor looks ahead for so long only.
func (c *cluster) unsettledFor(ahead time.Duration) string {
	view, what := c.agreed()
	if what != "" {
		return what
	}
	if what := c.misplaced(view); what != "" {
		return what
	}
	want := map[string]bool{} // tasks
	for s := range store.List[*api.Service](view) {
		if what := unserved(view, s, want); what != "" {
			return s.Spec.Name + ": " + what
		}
	}
	running := 0
	for _, h := range c.hosts {
		for _, id := range h.fake.Running() {
			if !want[id] {
				return fmt.Sprintf("%s runs task %s, which nobody wants", h.id, id)
			}
			running++
		}
	}
	if running != len(want) {
		return fmt.Sprintf("%d containers run for %d tasks", running, len(want))
	}
	return undone(view, c.leader().host.now().UTC(), ahead)
}

// agreed is what all managers have, once they have the same.
func (c *cluster) agreed() (first *store.View, what string) {
	for _, h := range c.hosts {
		m := h.managing()
		if m == nil {
			continue
		}
		view := m.store.View()
		if first == nil {
			first = view
		}
		if view.Index() != first.Index() {
			return nil, fmt.Sprintf("%s is at entry %d, another manager at %d", h.id, view.Index(), first.Index())
		}
	}
	if first == nil {
		return nil, "there is no manager"
	}
	return first, ""
}

// tally is how a service's slots stand.
type tally struct {
	running map[slot]int
	live    map[slot]bool // with a task that runs, or waits for room
	done    map[slot]bool // jobs: completed; else: ended for good
}

// unserved says what a service has not that it should have; the tasks that are to run are
// added to want.
func unserved(view *store.View, s *api.Service, want map[string]bool) string {
	n := tally{running: map[slot]int{}, live: map[slot]bool{}, done: map[slot]bool{}}
	newest := map[slot]*api.Task{}
	for t := range store.List[*api.Task](view, store.ByService(s.ID)) {
		if at := slotOf(t); newest[at] == nil || newest[at].CreatedAt.Before(t.CreatedAt) {
			newest[at] = t
		}
		switch {
		case api.ToldToEnd(t.DesiredState) && api.Rank(t.Status.State) < api.Rank(swarm.TaskStateAssigned):
			continue // an update that waits knows its slot by it
		case api.Final(t.Status.State):
			if t.Status.State == swarm.TaskStateComplete && s.Iteration(t) {
				n.done[slotOf(t)] = true
			}
			continue
		default:
			n.live[slotOf(t)] = true
		}
		switch {
		case s.Stopped():
			return fmt.Sprintf("it is stopped, and task %s is %s", t.ID, t.Status.State)
		case s.Job() && !s.Iteration(t):
			return fmt.Sprintf("task %s of a former iteration is %s", t.ID, t.Status.State)
		case t.DesiredState == swarm.TaskStateRunning && t.Status.State == swarm.TaskStateRunning:
			if n.running[slotOf(t)]++; n.running[slotOf(t)] > 1 {
				return fmt.Sprintf("slot %+v has %d tasks that run", slotOf(t), n.running[slotOf(t)])
			}
			want[t.ID] = true
			if store.Get[*api.Node](view, t.NodeID).Spec.Availability == swarm.NodeAvailabilityDrain {
				return fmt.Sprintf("task %s is to run on %s, which is drained", t.ID, t.NodeID)
			}
		case api.ToldToEnd(t.DesiredState) || placed(t) || t.Status.Err == "":
			return fmt.Sprintf("task %s on %s is %s (%s) and shall be %s", t.ID, t.NodeID, t.Status.State, t.Status.Err, t.DesiredState)
		}
	}
	if r := s.Spec.TaskTemplate.RestartPolicy; r != nil && r.MaxAttempts != nil {
		for at, t := range newest {
			if !n.live[at] && (t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected) {
				n.done[at] = true
			}
		}
	}
	if s.Stopped() {
		return ""
	}
	return amiss(view, s, n)
}

// amiss compares a service that is not stopped with what it asks for.
func amiss(view *store.View, s *api.Service, n tally) string {
	mode := s.Spec.Mode
	switch {
	case mode.Replicated != nil && len(n.live)+len(n.done) != int(*mode.Replicated.Replicas):
		return fmt.Sprintf("%d tasks run or wait for room, and %d have failed for good; %d shall run", len(n.live), len(n.done), *mode.Replicated.Replicas)
	case mode.ReplicatedJob != nil && len(n.live) == 0 && len(n.done) != int(*mode.ReplicatedJob.TotalCompletions):
		return fmt.Sprintf("%d of %d tasks have completed", len(n.done), *mode.ReplicatedJob.TotalCompletions)
	case mode.Global == nil && mode.GlobalJob == nil:
		return ""
	}
	cs, err := api.ParseConstraints(placement(s.Spec.TaskTemplate.Placement).Constraints)
	if err != nil {
		return err.Error()
	}
	for node := range store.List[*api.Node](view) {
		at := slot{service: s.ID, node: node.ID}
		switch may := node.Spec.Availability != swarm.NodeAvailabilityDrain && api.MatchAll(cs, node); {
		case n.live[at] && !may:
			return node.ID + " has one of its tasks, and may not"
		case !n.live[at] && !n.done[at] && may && node.Spec.Availability == swarm.NodeAvailabilityActive:
			return node.ID + " has none of its tasks"
		}
	}
	return ""
}

func placement(p *swarm.Placement) *swarm.Placement {
	if p != nil {
		return p
	}
	return &swarm.Placement{}
}

// undone says what the leader's loops would do, if they began now: they have forgotten
// something then, or count something in that is not in the store any more. Nor may they
// mean to look again within the time ahead.
func undone(view *store.View, now time.Time, ahead time.Duration) string {
	nodes, room := map[string]*api.Node{}, scheduler.New()
	for n := range store.List[*api.Node](view) {
		nodes[n.ID] = n
		room.SetNode(n)
	}
	ports, addresses := inUse(view)
	versions := rotator.Read(view)
	for s := range store.List[*api.Service](view) {
		if given, err := allocator.Service(s, ports, addresses); err == nil && given != nil {
			return fmt.Sprintf("%s: it has %+v, and may have %+v", s.Spec.Name, s.Endpoint, given.Endpoint)
		}
		if _, changed := rotator.Plan(s, versions); changed {
			return s.Spec.Name + ": there are newer versions of its secrets"
		}
		if underWay(s) && !waits(view, s) && !s.Stopped() && !promotedByHand(s) {
			return fmt.Sprintf("%s: %s", s.Spec.Name, s.UpdateStatus.Message)
		}
		in := orchestrator.Input{Service: s, Nodes: nodes, Now: now, NewID: api.NewID, History: 2}
		in.Fits = func(t *api.Task, node string) bool { return scheduler.Fits(view, t, node) == "" }
		for t := range store.List[*api.Task](view, store.ByService(s.ID)) {
			in.Tasks = append(in.Tasks, t)
			room.SetTask(t.ID, t, now)
		}
		out := orchestrator.Plan(in)
		if len(out.Create)+len(out.Desired)+len(out.Orphaned)+len(out.Delete) > 0 || out.Update != nil {
			return fmt.Sprintf("%s: the orchestrator has not made %d tasks, changed %v, deleted %v, updated %v: %s", s.Spec.Name,
				len(out.Create), out.Desired, out.Delete, out.Update != nil, standing(s, in.Tasks))
		}
		// What it does then may make room for others, who wait for nothing else.
		if wait := out.Again.Sub(now); !out.Again.IsZero() && wait <= ahead {
			return fmt.Sprintf("%s: the orchestrator will look again in %s: %s", s.Spec.Name, wait, standing(s, in.Tasks))
		}
	}
	for t := range store.List[*api.Task](view) {
		switch {
		case store.Get[*api.Service](view, t.ServiceID) == nil:
			return fmt.Sprintf("task %s of service %s, which was removed, is %s", t.ID, t.ServiceID, t.Status.State)
		case api.ToldToEnd(t.DesiredState) || placed(t) || api.Final(t.Status.State):
		case t.Status.State == swarm.TaskStateNew:
			_, refused := allocator.Service(store.Get[*api.Service](view, t.ServiceID), ports, addresses)
			if c, _ := allocator.Task(t, store.Get[*api.Service](view, t.ServiceID), refused, addresses, now); c != nil && c.Status.State != swarm.TaskStateNew {
				return fmt.Sprintf("task %s waits (%s), and might be allocated", t.ID, t.Status.Err)
			}
		default:
			if p := room.Schedule([]*api.Task{t}, now)[0]; p.NodeID != "" || len(p.Evict) > 0 {
				return fmt.Sprintf("task %s waits (%s), and %s has room, if %d leave", t.ID, t.Status.Err, p.NodeID, len(p.Evict))
			}
		}
	}
	return ""
}

// standing says how a service's update and its tasks stand.
func standing(s *api.Service, tasks []*api.Task) string {
	out := fmt.Sprintf("of version %d, %+v, it has", s.SpecVersion, s.UpdateStatus)
	for _, t := range tasks {
		out += fmt.Sprintf(" %s.%d:%d@%s %s/%s made %s", t.ID, t.Slot, t.SpecVersion, t.NodeID, t.Status.State, t.DesiredState, t.CreatedAt.Format("15:04:05.000"))
		if !t.NotBefore.IsZero() {
			out += t.NotBefore.Format(" to start 15:04:05.000")
		}
		if t.Status.Err != "" {
			out += " (" + t.Status.Err + ")"
		}
	}
	return out
}

// underWay reports whether the service is being updated.
func underWay(s *api.Service) bool {
	st := s.UpdateStatus
	return st != nil && (st.State == swarm.UpdateStateUpdating || st.State == swarm.UpdateStateRollbackStarted)
}

// promotedByHand reports whether the service's update goes on when a user says so.
func promotedByHand(s *api.Service) bool {
	policy, err := api.ParsePolicy(s.Spec.Labels)
	return err == nil && policy.Canary > 0 && policy.Promote == api.PromoteManual && s.Promoted != s.SpecVersion && s.UpdateStatus.State == swarm.UpdateStateUpdating
}

// waits reports whether a task of the service waits for room.
func waits(view *store.View, s *api.Service) bool {
	for t := range store.List[*api.Task](view, store.ByService(s.ID)) {
		if !placed(t) && !api.Final(t.Status.State) {
			return true
		}
	}
	return false
}

// inUse computes from the store what the allocator keeps in memory.
func inUse(view *store.View) (api.Ports, *allocator.State) {
	ports, addresses := api.Ports{}, allocator.NewState()
	for n := range store.List[*api.Network](view) {
		addresses.SetNetwork(n)
	}
	for s := range store.List[*api.Service](view) {
		ports.Add(s)
		addresses.ChangeService(nil, s)
	}
	for t := range store.List[*api.Task](view) {
		addresses.ChangeTask(nil, t)
	}
	addresses.Resume()
	return ports, addresses
}
