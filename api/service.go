package api

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// StoppedLabel is true on a service that keeps its scale and has no tasks. It is
// no business of the tasks': a service that is stopped and started is of the same
// version.
const StoppedLabel = PolicyPrefix + "stopped"

// TaskSpec returns what tasks made of the service now have in common.
func (s *Service) TaskSpec() *TaskSpec {
	labels := s.Spec.Labels
	if _, ok := labels[StoppedLabel]; ok {
		labels = maps.Clone(labels)
		delete(labels, StoppedLabel)
	}
	return &TaskSpec{
		TaskSpec: s.Spec.TaskTemplate, ServiceName: s.Spec.Name, ServiceLabels: labels,
		Global: s.Spec.Mode.Global != nil || s.Spec.Mode.GlobalJob != nil, Endpoint: s.Spec.EndpointSpec, RegistryAuth: s.RegistryAuth,
	}
}

// Stopped reports whether the service shall have no tasks for now.
func (s *Service) Stopped() bool {
	on, err := strconv.ParseBool(s.Spec.Labels[StoppedLabel])
	return err == nil && on
}

// SetStopped returns the labels with the service stopped, or not. The given ones
// stay as they are.
func SetStopped(labels map[string]string, stopped bool) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	delete(out, StoppedLabel)
	if stopped {
		out[StoppedLabel] = "true"
	}
	return out
}

// Job reports whether the service's tasks are to run to completion.
func (s *Service) Job() bool { return s.Spec.Mode.ReplicatedJob != nil || s.Spec.Mode.GlobalJob != nil }

// Iteration reports whether the task belongs to the job's present iteration.
func (s *Service) Iteration(t *Task) bool {
	return s.JobStatus != nil && t.JobIteration != nil && t.JobIteration.Index == s.JobStatus.JobIteration.Index
}

// SameService reports whether two services' specs say the same, whether they
// are stopped aside.
func SameService(a, b *swarm.ServiceSpec) bool {
	x, y := *a, *b
	x.Labels, y.Labels = SetStopped(a.Labels, false), SetStopped(b.Labels, false)
	return reflect.DeepEqual(x, y) || sameJSON(x, y)
}

// Equal reports whether two specs say the same.
func (s *TaskSpec) Equal(o *TaskSpec) bool {
	return s == o || reflect.DeepEqual(s, o) || sameJSON(s, o)
}

// SameRun reports whether a task of one spec does what one of the other would,
// so that it need not be replaced. Left aside are the restart policy, which acts
// on tasks from outside; where they are placed; the service's labels but those of
// ours that are about what runs; and which ports the routing mesh has, but not
// whether it has any: tasks are in its network.
func (s *TaskSpec) SameRun(o *TaskSpec) bool {
	a, b := s.run(), o.run()
	return reflect.DeepEqual(a, b) || sameJSON(a, b)
}

func (s *TaskSpec) run() TaskSpec {
	c := *s
	c.RestartPolicy, c.Placement, c.ServiceLabels = nil, nil, runLabels(s.ServiceLabels)
	c.Endpoint = &swarm.EndpointSpec{}
	c.Endpoint.Ports = append(c.Endpoint.Ports, hostPorts(s.Endpoint)...)
	if UsesIngress(s.Endpoint) {
		c.Endpoint.Ports = append(c.Endpoint.Ports, swarm.PortConfig{PublishMode: swarm.PortConfigPublishModeIngress})
	}
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
// present one, and without a previous one: its next version. It must have one. A
// service that is stopped stays so.
func (s *Service) Rollback() *Service {
	r := *s
	r.Spec, r.SpecVersion, r.RegistryAuth = *s.PreviousSpec, s.PreviousSpecVersion, s.PreviousRegistryAuth
	if _, was := r.Spec.Labels[StoppedLabel]; was || s.Stopped() {
		r.Spec.Labels = SetStopped(r.Spec.Labels, s.Stopped())
	}
	r.PreviousSpec, r.PreviousSpecVersion, r.PreviousRegistryAuth = nil, 0, ""
	r.Number++
	return &r
}

// PreviouslyIn reports whether the service is in a network by its previous spec while
// tasks of that may run, or it may come back by itself: the service is being updated or
// rolled back, or that is paused.
func (s *Service) PreviouslyIn(network string) bool {
	if s.PreviousSpec == nil || s.UpdateStatus == nil {
		return false
	}
	switch s.UpdateStatus.State {
	case swarm.UpdateStateUpdating, swarm.UpdateStatePaused, swarm.UpdateStateRollbackStarted, swarm.UpdateStateRollbackPaused:
		return slices.ContainsFunc(s.PreviousSpec.TaskTemplate.Networks, func(n swarm.NetworkAttachmentConfig) bool { return n.Target == network })
	}
	return false
}

// UsesIngress reports whether something is published by the routing mesh.
func UsesIngress(e *swarm.EndpointSpec) bool {
	if e == nil {
		return false
	}
	for i := range e.Ports {
		if e.Ports[i].PublishMode != swarm.PortConfigPublishModeHost {
			return true
		}
	}
	return false
}
