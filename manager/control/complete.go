package control

import "github.com/moby/moby/api/types/swarm"

// Complete returns the spec with its mode said: a service is replicated unless
// it says otherwise, and has one replica; a replicated job runs one task at a
// time, and completes as many as may run at once. Clients rely on all being there.
func Complete(s *swarm.ServiceSpec) *swarm.ServiceSpec {
	if s == nil {
		return nil
	}
	c := *s
	m := &c.Mode
	if m.Replicated == nil && m.Global == nil && m.ReplicatedJob == nil && m.GlobalJob == nil {
		m.Replicated = &swarm.ReplicatedService{}
	}
	if m.Replicated != nil && m.Replicated.Replicas == nil {
		m.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(1))}
	}
	if m.ReplicatedJob != nil {
		j := *m.ReplicatedJob
		if j.MaxConcurrent == nil {
			j.MaxConcurrent = new(uint64(1))
		}
		if j.TotalCompletions == nil {
			j.TotalCompletions = new(*j.MaxConcurrent)
		}
		m.ReplicatedJob = &j
	}
	return &c
}
