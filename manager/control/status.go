package control

import (
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// fillStatus counts the services' tasks in one pass.
func fillStatus(view *store.View, services []swarm.Service) {
	counts := make(map[string]*api.Service, len(services))
	for i := range services {
		s := &api.Service{Service: services[i]}
		s.ServiceStatus = &swarm.ServiceStatus{DesiredTasks: desired(view, s)}
		services[i].ServiceStatus = s.ServiceStatus
		counts[s.ID] = s
	}
	count := func(t *api.Task) {
		if s := counts[t.ServiceID]; s != nil {
			countTask(s, t)
		}
	}
	if len(services) == 1 {
		for t := range store.List[*api.Task](view, store.ByService(services[0].ID)) {
			count(t)
		}
		return
	}
	for t := range store.List[*api.Task](view) {
		count(t)
	}
}

// desired is how many tasks a service wants to run, as far as its spec says.
func desired(view *store.View, s *api.Service) uint64 {
	m := &s.Spec.Mode
	switch {
	case m.Replicated != nil:
		return *m.Replicated.Replicas // always set, see resolve
	case m.ReplicatedJob != nil:
		return min(*m.ReplicatedJob.MaxConcurrent, *m.ReplicatedJob.TotalCompletions)
	case m.Global != nil && s.Stopped():
		return suitable(view, &s.Spec)
	}
	return 0 // global services and jobs: counted by their tasks
}

// suitable counts the nodes that a global service would run on.
func suitable(view *store.View, s *swarm.ServiceSpec) uint64 {
	var constraints []api.Constraint
	if p := s.TaskTemplate.Placement; p != nil {
		constraints, _ = api.ParseConstraints(p.Constraints) // checked when the service was written
	}
	var n uint64
	for node := range store.List[*api.Node](view) {
		if node.Spec.Availability != swarm.NodeAvailabilityDrain && node.Status.State == swarm.NodeStateReady && api.MatchAll(constraints, node) {
			n++
		}
	}
	return n
}

// countTask adds a task to its service's status. Of a job, those of the present
// iteration count.
func countTask(s *api.Service, t *api.Task) {
	st := s.ServiceStatus
	if s.Job() && !s.Iteration(t) {
		return
	}
	switch {
	case s.Job() && t.Status.State == swarm.TaskStateComplete:
		st.CompletedTasks++
		return
	case api.ToldToEnd(t.DesiredState):
		return
	case t.Spec.Global:
		st.DesiredTasks++
	}
	if t.Status.State == swarm.TaskStateRunning && t.DesiredState != swarm.TaskStateReady {
		st.RunningTasks++
	}
}
