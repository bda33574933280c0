package control

import (
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/store"
)

// progress is the update status that inspect shows. Clients that wait for a
// service wait until all its tasks run; there is no such moment if tasks
// complete, fail for good, or are not to run. Then the status says that the
// service is where it can get, or what is wrong with it: "completed" and "paused"
// are what clients end at, see design/orchestrator.md. It is not kept.
func progress(view *store.View, s *api.Service, now time.Time) *swarm.UpdateStatus {
	stored := s.UpdateStatus
	tell := func(state swarm.UpdateState, format string, args ...any) *swarm.UpdateStatus {
		return &swarm.UpdateStatus{State: state, StartedAt: new(s.UpdatedAt), CompletedAt: new(now), Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case s.Stopped():
		if left := unended(view, s); left > 0 {
			return &swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: new(s.UpdatedAt), Message: fmt.Sprintf("service is being stopped: %d tasks left", left)}
		}
		return tell(swarm.UpdateStateCompleted, "service is stopped")
	case s.Job():
		o := orchestrator.JobOutcome(jobInput(view, s, now))
		if o.Over && o.Failed > 0 {
			return tell(swarm.UpdateStatePaused, "job failed: %d completed, %d given up; task %s: %s", o.Completed, o.Failed, o.Last.ID, reason(o.Last))
		}
		return stored
	case stored != nil || !ends(s):
		return stored
	}
	o := outcome(view, s, now)
	switch {
	case !o.settled || o.completed+o.failed == 0:
		return stored
	case o.failed > 0:
		return tell(swarm.UpdateStatePaused, "%d tasks completed, %d failed and are not restarted; task %s: %s", o.completed, o.failed, o.last.ID, reason(o.last))
	}
	return tell(swarm.UpdateStateCompleted, "%d tasks completed", o.completed)
}

func reason(t *api.Task) string {
	if t.Status.Err != "" {
		return t.Status.Err
	}
	return string(t.Status.State)
}

// ends reports whether tasks of a service may end and not be replaced.
func ends(s *api.Service) bool {
	r := s.Spec.TaskTemplate.RestartPolicy
	return r != nil && (r.Condition == swarm.RestartPolicyConditionNone || r.Condition == swarm.RestartPolicyConditionOnFailure ||
		r.MaxAttempts != nil && *r.MaxAttempts > 0)
}

// unended counts the service's tasks that have not ended, as far as nodes that
// are not down can tell.
func unended(view *store.View, s *api.Service) int {
	n := 0
	for t := range store.List[*api.Task](view, store.ByService(s.ID)) {
		placed := api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned)
		if api.Final(t.Status.State) || !placed && api.ToldToEnd(t.DesiredState) {
			continue
		}
		if node := store.Get[*api.Node](view, t.NodeID); node == nil && t.NodeID != "" || node != nil && node.Status.State == swarm.NodeStateDown {
			continue
		}
		n++
	}
	return n
}

func jobInput(view *store.View, s *api.Service, now time.Time) orchestrator.Input {
	in := orchestrator.Input{Service: s, Nodes: map[string]*api.Node{}, Now: now}
	for n := range store.List[*api.Node](view) {
		in.Nodes[n.ID] = n
	}
	for t := range store.List[*api.Task](view, store.ByService(s.ID)) {
		in.Tasks = append(in.Tasks, t)
	}
	return in
}

// outcomes are what has become of a service's slots.
type outcomes struct {
	// settled is set when each slot has a task that ran for long enough, or none
	// and gets none.
	settled           bool
	completed, failed int
	last              *api.Task // one that failed
}

type slotKey struct {
	number int
	node   string
}

func outcome(view *store.View, s *api.Service, now time.Time) outcomes {
	o := outcomes{settled: true}
	newest := map[slotKey]*api.Task{}
	alive := map[slotKey]bool{}
	for t := range store.List[*api.Task](view, store.ByService(s.ID)) {
		if t.DesiredState == swarm.TaskStateRemove {
			continue
		}
		k := slotKey{number: t.Slot}
		if t.Spec.Global {
			k = slotKey{node: t.NodeID}
		}
		if !api.ToldToEnd(t.DesiredState) {
			alive[k] = true
			o.settled = o.settled && t.Status.State == swarm.TaskStateRunning && !t.Status.Timestamp.After(now.Add(-monitor(&s.Spec)))
		}
		if have := newest[k]; have == nil || have.CreatedAt.Before(t.CreatedAt) {
			newest[k] = t
		}
	}
	for k, t := range newest {
		if alive[k] {
			continue
		}
		switch {
		case t.SpecVersion != s.SpecVersion && !t.Spec.SameRun(s.TaskSpec()):
			o.settled = false // another comes
		case t.Status.State == swarm.TaskStateComplete:
			o.completed++
		case t.Spec.Global && t.Status.State == swarm.TaskStateShutdown: // its node is drained
		default:
			o.failed++
			o.last = t
		}
	}
	if r := s.Spec.Mode.Replicated; r != nil && uint64(len(newest)) < *r.Replicas || len(newest) == 0 {
		o.settled = false
	}
	return o
}

func monitor(s *swarm.ServiceSpec) time.Duration {
	if u := s.UpdateConfig; u != nil && u.Monitor > 0 {
		return u.Monitor
	}
	return defaultMonitor
}

// backedOff says why a task waits for longer than its restart policy asks for;
// "" if it does not.
func backedOff(t *api.Task, now time.Time) string {
	if t.DesiredState != swarm.TaskStateReady || api.Final(t.Status.State) || !t.NotBefore.After(now) || !orchestrator.BackedOff(t) {
		return ""
	}
	return fmt.Sprintf("back-off: restarts %s after several quick failures, at %s", t.NotBefore.Sub(t.CreatedAt).Round(time.Second), t.NotBefore.Format("15:04:05Z07:00"))
}
