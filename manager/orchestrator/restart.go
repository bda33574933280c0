package orchestrator

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// defaultRestartDelay is Docker's.
const defaultRestartDelay = 5 * time.Second

func restartDelay(s *api.Service) time.Duration {
	if r := s.Spec.TaskTemplate.RestartPolicy; r != nil && r.Delay != nil {
		return *r.Delay
	}
	return defaultRestartDelay
}

// tend replaces the slot's task if it has ended or may not stay where it is.
// It reports whether the slot is taken: by a task, or by the policy that there
// be no other.
func (p *plan) tend(s *slot) bool {
	t := p.live(s)
	switch {
	case t == nil:
		return p.finished(s)
	case p.evicted(t):
		p.want(t, swarm.TaskStateShutdown)
		p.create(s, t, 0)
		return true
	case !api.Final(t.Status.State):
		return true
	}
	p.want(t, swarm.TaskStateShutdown)
	if p.mayRestart(s, t) {
		p.create(s, t, restartDelay(p.Service))
	}
	return true
}

// finished reports whether the slot's last task ended and the policy allows no
// other of the same spec.
func (p *plan) finished(s *slot) bool {
	if len(s.tasks) == 0 {
		return false
	}
	t := s.tasks[0]
	return t.SpecVersion == p.Service.SpecVersion && restarted(t) && !p.mayRestart(s, t)
}

// mayRestart applies the restart policy to a task that has ended.
func (p *plan) mayRestart(s *slot, t *api.Task) bool {
	r := p.Service.Spec.TaskTemplate.RestartPolicy
	if r == nil {
		return true
	}
	switch r.Condition {
	case swarm.RestartPolicyConditionNone:
		return false
	case swarm.RestartPolicyConditionOnFailure:
		if t.Status.State == swarm.TaskStateComplete {
			return false
		}
	}
	if r.MaxAttempts == nil || *r.MaxAttempts == 0 {
		return true
	}
	return p.attempts(s) < *r.MaxAttempts
}

// attempts counts how often the slot's tasks of this spec were restarted, within
// the policy's window if it has one.
func (p *plan) attempts(s *slot) uint64 {
	var window time.Duration
	if w := p.Service.Spec.TaskTemplate.RestartPolicy.Window; w != nil {
		window = *w
	}
	var n uint64
	for i, t := range s.tasks {
		first := i == len(s.tasks)-1
		if t.SpecVersion != p.Service.SpecVersion || first || !restarted(s.tasks[i+1]) {
			break
		}
		if window == 0 || p.Now.Sub(t.CreatedAt) < window {
			n++
		}
	}
	return n
}
