package control

import "github.com/moby/moby/api/types/swarm"

// Complete returns the spec with its mode said: a service is replicated unless
// it says otherwise, and has one replica. Clients rely on both being there.
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
	return &c
}
