package control

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// What a service does that does not say: Docker's numbers.
const (
	defaultGrace        = 10 * time.Second
	defaultRestartDelay = 5 * time.Second
	defaultMonitor      = 5 * time.Second
)

// withDefaults returns the spec with all defaults filled in, as inspect shows it
// on demand. The parts that it changes are copies.
func withDefaults(s swarm.ServiceSpec) swarm.ServiceSpec {
	if c := s.TaskTemplate.ContainerSpec; c != nil {
		n := *c
		if n.StopGracePeriod == nil {
			n.StopGracePeriod = new(defaultGrace)
		}
		if n.DNSConfig == nil {
			n.DNSConfig = &swarm.DNSConfig{}
		}
		s.TaskTemplate.ContainerSpec = &n
	}
	if s.TaskTemplate.Resources == nil {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{}
	}
	job := s.Mode.ReplicatedJob != nil || s.Mode.GlobalJob != nil
	r := swarm.RestartPolicy{}
	if s.TaskTemplate.RestartPolicy != nil {
		r = *s.TaskTemplate.RestartPolicy
	}
	if r.Condition == "" {
		r.Condition = swarm.RestartPolicyConditionAny
		if job {
			r.Condition = swarm.RestartPolicyConditionOnFailure
		}
	}
	if r.Delay == nil {
		r.Delay = new(defaultRestartDelay)
	}
	if r.MaxAttempts == nil {
		r.MaxAttempts = new(uint64)
	}
	s.TaskTemplate.RestartPolicy = &r
	if s.TaskTemplate.Placement == nil {
		s.TaskTemplate.Placement = &swarm.Placement{}
	}
	if !job {
		s.UpdateConfig, s.RollbackConfig = updateDefaults(s.UpdateConfig), updateDefaults(s.RollbackConfig)
	}
	if s.EndpointSpec == nil {
		s.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
	}
	return s
}

func updateDefaults(c *swarm.UpdateConfig) *swarm.UpdateConfig {
	u := swarm.UpdateConfig{Parallelism: 1}
	if c != nil {
		u = *c
	}
	if u.FailureAction == "" {
		u.FailureAction = swarm.UpdateFailureActionPause
	}
	if u.Monitor == 0 {
		u.Monitor = defaultMonitor
	}
	if u.Order == "" {
		u.Order = swarm.UpdateOrderStopFirst
	}
	return &u
}
