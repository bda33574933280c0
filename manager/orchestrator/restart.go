package orchestrator

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// defaultRestartDelay is Docker's.
const defaultRestartDelay = 5 * time.Second

func (p *plan) policy() swarm.RestartPolicy {
	r := swarm.RestartPolicy{}
	if s := p.Service.Spec.TaskTemplate.RestartPolicy; s != nil {
		r = *s
	}
	if r.Condition == "" {
		r.Condition = swarm.RestartPolicyConditionAny
	}
	if p.Service.Job() && r.Condition == swarm.RestartPolicyConditionAny {
		r.Condition = swarm.RestartPolicyConditionOnFailure // what a job completed is done
	}
	if r.Delay == nil {
		r.Delay = new(defaultRestartDelay)
	}
	return r
}

// tend replaces the slot's live task if it has ended or may not stay where it
// is, as the restart policy allows.
func (p *plan) tend(s *slot) {
	t := p.live(s)
	if t == nil || p.full() {
		return
	}
	switch {
	case api.Final(t.Status.State) && p.early(t):
		p.again(t.NotBefore) // it could not even be prepared while it waited
	case api.Final(t.Status.State):
		p.want(t, swarm.TaskStateShutdown)
		if p.mayRestart(s, t) {
			p.create(s, p.delay(s))
		}
	case p.evicted(t):
		p.want(t, swarm.TaskStateShutdown)
		if p.policy().Condition != swarm.RestartPolicyConditionNone || !mayHaveRun(t) {
			p.create(s, 0)
		}
	}
}

// mayHaveRun reports whether the task was given to a node.
func mayHaveRun(t *api.Task) bool {
	return api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned)
}

// finished reports whether the slot's last task was of the present spec and the
// policy allows no other: the slot stays taken.
func (p *plan) finished(s *slot) bool {
	if len(s.tasks) == 0 {
		return false
	}
	t := s.tasks[0]
	switch {
	case p.stale(t):
		return false
	case byItself(t):
		return !p.mayRestart(s, t)
	}
	return p.policy().Condition == swarm.RestartPolicyConditionNone && mayHaveRun(t)
}

// mayRestart applies the restart policy to a task that has ended.
func (p *plan) mayRestart(s *slot, t *api.Task) bool {
	r := p.policy()
	switch {
	case r.Condition == swarm.RestartPolicyConditionNone,
		r.Condition == swarm.RestartPolicyConditionOnFailure && t.Status.State == swarm.TaskStateComplete:
		return false
	case r.MaxAttempts == nil || *r.MaxAttempts == 0:
		return true
	}
	return p.attempts(s, r.Window, since(t)) < *r.MaxAttempts
}

// within reports whether a task was made in the window before a time; nil or 0: no
// window. One that comes after that time is of before a clock was set back.
func within(window *time.Duration, t *api.Task, end time.Time) bool {
	ago := end.Sub(t.Born())
	return window == nil || *window == 0 || ago >= 0 && ago < *window
}

// attempts counts how often the slot's tasks of the present spec were restarted,
// within the window before the end of the last one if there is a window.
func (p *plan) attempts(s *slot, window *time.Duration, end time.Time) uint64 {
	var n uint64
	for i, t := range s.tasks {
		if p.stale(t) || i == len(s.tasks)-1 || !byItself(s.tasks[i+1]) || p.stale(s.tasks[i+1]) {
			break
		}
		if within(window, t, end) {
			n++
		}
	}
	return n
}
