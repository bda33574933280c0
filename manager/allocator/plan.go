package allocator

import (
	"reflect"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Service returns the service with what its spec needs allocated, nil if it has
// that already. ports are those in use, addresses those of networks; what the
// service gets is counted in. Conflict: another service has a port;
// ResourceExhausted: no port or address is left.
func Service(s *api.Service, ports api.Ports, addresses *State) (*api.Service, error) {
	var e swarm.Endpoint
	if s.Spec.EndpointSpec != nil {
		e.Spec = *s.Spec.EndpointSpec
	}
	var err error
	if e.Ports, err = ports.Allocate(s); err != nil {
		return nil, err
	}
	if e.VirtualIPs, err = addresses.virtualIPs(s); err != nil {
		return nil, err
	}
	if reflect.DeepEqual(e, s.Endpoint) || len(e.VirtualIPs)+len(s.Endpoint.VirtualIPs) == 0 && sameButAddresses(e, s.Endpoint) {
		return nil, nil
	}
	c := *s
	c.Endpoint = e
	return &c, nil
}

func sameButAddresses(a, b swarm.Endpoint) bool {
	a.VirtualIPs, b.VirtualIPs = nil, nil
	return reflect.DeepEqual(a, b)
}

// Node returns the node with its addresses in the ingress network, nil if it has
// them, or needs none, already. What it gets is counted in. ResourceExhausted: the
// network has no address left.
func Node(n *api.Node, addresses *State) (*api.Node, error) {
	if n.IngressNetwork == addresses.ingress {
		return nil, nil
	}
	c := *n
	c.Ingress, c.IngressNetwork = nil, ""
	if addresses.ingress == "" {
		return &c, nil
	}
	var err error
	if c.Ingress, err = addresses.take(addresses.ingress); err != nil {
		return nil, err
	}
	c.IngressNetwork = addresses.ingress
	return &c, nil
}

// Task returns a new task with what it needs, ready to be scheduled, or with the
// reason why it has to wait, which is the error as well; nil if nothing changes.
// refused is what Service said of its service, which is nil when the task has none.
// What the task gets is counted in. An attachment is where it belongs: it runs.
func Task(t *api.Task, s *api.Service, refused error, addresses *State, now time.Time) (*api.Task, error) {
	c := *t
	c.Networks = nil
	if refused == nil {
		c.Networks, refused = addresses.attach(t)
	}
	if refused != nil {
		if t.Status.Err == refused.Error() {
			return nil, refused
		}
		c.Status = swarm.TaskStatus{State: swarm.TaskStateNew, Timestamp: now, Message: "pending allocation", Err: refused.Error()}
		return &c, refused
	}
	if s != nil {
		c.Ports = s.Endpoint.Ports
	}
	c.Status = swarm.TaskStatus{State: swarm.TaskStatePending, Timestamp: now, Message: "pending task scheduling"}
	if t.Attachment() {
		c.Status = swarm.TaskStatus{State: swarm.TaskStateRunning, Timestamp: now, Message: "attached"}
	}
	return &c, nil
}
