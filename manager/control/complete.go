package control

import (
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// Complete returns the spec with its mode said: a service is replicated unless
// it says otherwise, and has one replica; a replicated job runs one task at a
// time, and completes as many as may run at once; it has a virtual IP, and its
// ports are TCP's and the routing mesh's. Clients rely on all being there. That the
// tasks are containers is not kept: clients that say it and those that don't mean
// the same.
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
	if c.TaskTemplate.Runtime == swarm.RuntimeContainer {
		c.TaskTemplate.Runtime = ""
	}
	c.EndpointSpec = completeEndpoint(c.EndpointSpec)
	return &c
}

func completeEndpoint(e *swarm.EndpointSpec) *swarm.EndpointSpec {
	if e == nil {
		return nil
	}
	c := swarm.EndpointSpec{Mode: or(e.Mode, swarm.ResolutionModeVIP), Ports: slices.Clone(e.Ports)}
	for i := range c.Ports {
		p := &c.Ports[i]
		p.Protocol, p.PublishMode = or(p.Protocol, network.TCP), or(p.PublishMode, swarm.PortConfigPublishModeIngress)
	}
	return &c
}
