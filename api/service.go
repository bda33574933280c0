package api

import (
	"bytes"
	"encoding/json"
	"reflect"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// TaskSpec returns what tasks made of the service now have in common.
func (s *Service) TaskSpec() *TaskSpec {
	return &TaskSpec{
		TaskSpec: s.Spec.TaskTemplate, ServiceName: s.Spec.Name, ServiceLabels: s.Spec.Labels,
		Global: s.Spec.Mode.Global != nil || s.Spec.Mode.GlobalJob != nil, Endpoint: s.Spec.EndpointSpec, RegistryAuth: s.RegistryAuth,
	}
}

// Equal reports whether two specs say the same.
func (s *TaskSpec) Equal(o *TaskSpec) bool {
	return s == o || reflect.DeepEqual(s, o) || sameJSON(s, o)
}

// SameRun reports whether a task of one spec does what one of the other would,
// so that it need not be replaced. Left aside are the restart policy, which acts
// on tasks from outside; where they are placed; the service's labels; and ports
// of the routing mesh.
func (s *TaskSpec) SameRun(o *TaskSpec) bool {
	a, b := s.run(), o.run()
	return reflect.DeepEqual(a, b) || sameJSON(a, b)
}

func (s *TaskSpec) run() TaskSpec {
	c := *s
	c.RestartPolicy, c.Placement, c.ServiceLabels = nil, nil, nil
	c.Endpoint = &swarm.EndpointSpec{}
	c.Endpoint.Ports = append(c.Endpoint.Ports, hostPorts(s.Endpoint)...)
	return c
}

// hostPorts are the ports that tasks take on their nodes, with a protocol each.
func hostPorts(e *swarm.EndpointSpec) []swarm.PortConfig {
	if e == nil {
		return nil
	}
	var out []swarm.PortConfig
	for _, p := range e.Ports {
		if p.PublishMode == swarm.PortConfigPublishModeHost {
			if p.Protocol == "" {
				p.Protocol = network.TCP
			}
			out = append(out, p)
		}
	}
	return out
}

// HostPorts returns the ports that a task of the spec takes on its node itself
// (publish mode host), with their protocols filled in.
func (s *TaskSpec) HostPorts() []swarm.PortConfig { return hostPorts(s.Endpoint) }

// sameJSON tells specs apart that differ in more than nil against empty.
func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Rollback returns a copy of the service with its previous spec in place of the
// present one, and without a previous one: its next version. It must have one.
func (s *Service) Rollback() *Service {
	r := *s
	r.Spec, r.SpecVersion, r.RegistryAuth = *s.PreviousSpec, s.PreviousSpecVersion, s.PreviousRegistryAuth
	r.PreviousSpec, r.PreviousSpecVersion, r.PreviousRegistryAuth = nil, 0, ""
	r.Number++
	return &r
}
