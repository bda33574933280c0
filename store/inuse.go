package store

import "github.com/legion-swarm/legion/api"

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
	if !n.Spec.Ingress {
		return false
	}
	for o := range ByIDPrefix("").index(t, KindService) {
		if s, ok := o.(*api.Service); ok && api.UsesIngress(s.Spec.EndpointSpec) {
			return true
		}
	}
	return false
}
