package templates

import (
	"strconv"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Values are what templates can name: Docker's. No type in it may have methods,
// since templates could call them.
type Values struct {
	Service Service
	Node    Node
	Task    Task
}

// Service is the task's service.
type Service struct {
	ID, Name string
	Labels   map[string]string
}

// Node is the node that the task is on.
type Node struct {
	ID, Hostname string
	Platform     Platform
}

// Platform is a node's.
type Platform struct{ Architecture, OS string }

// Task is the task itself. Slot is the id of the node where the service has no
// slots, as with global ones.
type Task struct{ ID, Name, Slot string }

// Of returns the values for a task on the node that it is expanded on. The task
// must have a spec.
func Of(t *api.Task, hostname string, platform swarm.Platform) *Values {
	v := &Values{
		Service: Service{ID: t.ServiceID, Name: t.Spec.ServiceName, Labels: t.Spec.ServiceLabels},
		Node:    Node{ID: t.NodeID, Hostname: hostname, Platform: Platform{platform.Architecture, platform.OS}},
		Task:    Task{ID: t.ID, Name: t.Name(), Slot: strconv.Itoa(t.Slot)},
	}
	if t.Spec.Global || t.Slot == 0 {
		v.Task.Slot = t.NodeID
	}
	return v
}

// example stands in for a task when a service is checked.
func example(s *swarm.ServiceSpec) *Values {
	return &Values{
		Service: Service{ID: "serviceid", Name: s.Name, Labels: s.Labels},
		Node:    Node{ID: "nodeid", Hostname: "hostname", Platform: Platform{"x86_64", "linux"}},
		Task:    Task{ID: "taskid", Name: s.Name + ".1.taskid", Slot: "1"},
	}
}
