package store

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// inUse reports whether somebody needs a network that is being removed: a service,
// or a container that a node's user runs. Whoever removes it did not see them: they
// may come at the same time, and depend on the network alone.
func inUse(t *tables, n *api.Network) bool {
	for range ByNetwork(n.ID).index(t, KindService) {
		return true
	}
	for o := range ByNetwork(n.ID).index(t, KindTask) {
		if task, ok := o.(*api.Task); ok && task.Attachment() && !api.Final(task.Status.State) {
			return true
		}
	}
	for o := range ByIDPrefix("").index(t, KindService) {
		if s, ok := o.(*api.Service); ok && (s.PreviouslyIn(n.ID) || n.Spec.Ingress && api.UsesIngress(s.Spec.EndpointSpec)) {
			return true
		}
	}
	return false
}

// portTaken reports whether another service has a port that this one was given.
// Whoever gave it did not see that one: two managers may serve two users at the same
// time.
func portTaken(t *tables, was any, s *api.Service) bool {
	if old, ok := was.(*api.Service); ok && slices.Equal(old.Endpoint.Ports, s.Endpoint.Ports) {
		return false
	}
	own := api.Ports{}
	if own.Add(s); len(own) == 0 {
		return false
	}
	for o := range ByIDPrefix("").index(t, KindService) {
		other, ok := o.(*api.Service)
		if !ok || other.ID == s.ID {
			continue
		}
		for i := range other.Endpoint.Ports {
			c := &other.Endpoint.Ports[i]
			if _, both := own[api.Port{Number: c.PublishedPort, Protocol: c.Protocol}]; both && c.PublishMode != swarm.PortConfigPublishModeHost {
				return true
			}
		}
	}
	return false
}
