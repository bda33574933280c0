package allocator

import (
	"reflect"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Service returns the service with what its spec needs allocated, nil if it has
// that already. ports are those in use; what the service gets is counted in.
// Conflict: another service has a port; ResourceExhausted: none is left.
func Service(s *api.Service, ports api.Ports) (*api.Service, error) {
	var e swarm.Endpoint
	if s.Spec.EndpointSpec != nil {
		e.Spec = *s.Spec.EndpointSpec
	}
	var err error
	if e.Ports, err = ports.Allocate(s); err != nil {
		return nil, err
	}
	e.VirtualIPs = s.Endpoint.VirtualIPs
	if reflect.DeepEqual(e, s.Endpoint) {
		return nil, nil
	}
	c := *s
	c.Endpoint = e
	return &c, nil
}

// Task returns a new task with what it needs, ready to be scheduled, or with the
// reason why it has to wait; nil if nothing changes. refused is what Service said
// of its service, which is nil when the task has none.
func Task(t *api.Task, s *api.Service, refused error, now time.Time) *api.Task {
	c := *t
	if refused != nil {
		if t.Status.Err == refused.Error() {
			return nil
		}
		c.Status = swarm.TaskStatus{State: swarm.TaskStateNew, Timestamp: now, Message: "pending allocation", Err: refused.Error()}
		return &c
	}
	if s != nil {
		c.Ports = s.Endpoint.Ports
	}
	c.Networks = nil
	for _, n := range t.Spec.Networks {
		c.Networks = append(c.Networks, api.NetworkAttachment{NetworkID: n.Target, Aliases: n.Aliases, DriverOpts: n.DriverOpts})
	}
	c.Status = swarm.TaskStatus{State: swarm.TaskStatePending, Timestamp: now, Message: "pending task scheduling"}
	return &c
}
