package store

import (
	"iter"
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
	if attached(ByNetwork(n.ID).index(t, KindTask)) {
		return true
	}
	for o := range ByIDPrefix("").index(t, KindService) {
		if s, ok := o.(*api.Service); ok && (s.PreviouslyIn(n.ID) || n.Spec.Ingress && api.UsesIngress(s.Spec.EndpointSpec)) {
			return true
		}
	}
	return false
}

// attached reports whether there is a container among tasks that a node's user runs.
func attached(tasks iter.Seq[any]) bool {
	for o := range tasks {
		if t, ok := o.(*api.Task); ok && t.Attachment() && !api.Final(t.Status.State) {
			return true
		}
	}
	return false
}

// hasContainers reports whether a node that is being removed has joined containers to
// networks that whoever removes it did not see: nobody would end them. Tasks of
// services, too, may come to it at that time; the orchestrator ends those.
func hasContainers(t *tables, n *api.Node) bool {
	return attached(ByNode(n.ID).index(t, KindTask))
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
