package dispatcher

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// every marks all streams.
func (o *overlays) every(f func(m *marks)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, streams := range o.byNode {
		for s := range streams {
			s.mark(f)
		}
	}
}

// resync has everything told anew.
func (o *overlays) resync(view *store.View) {
	ingress := ""
	for n := range store.List[*api.Network](view) {
		if n.Spec.Ingress {
			ingress = n.ID
		}
	}
	o.mu.Lock()
	o.ingress = ingress
	o.mu.Unlock()
	o.once.Do(func() { close(o.synced) })
	o.every(func(m *marks) { m.all = true })
}

func (o *overlays) ingressNetwork() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ingress
}

// inNetwork marks the streams that follow a network. Callers hold mu.
func (o *overlays) inNetwork(id string, f func(m *networkMarks)) {
	for s := range o.byNetwork[id] {
		s.mark(func(m *marks) { f(m.network(id)) })
	}
}

// atNode marks a node's streams. Callers hold mu.
func (o *overlays) atNode(id string, f func(m *marks)) {
	for s := range o.byNode[id] {
		s.mark(f)
	}
}

// taskChanged marks what the change of a task means to others and to its own node.
func (o *overlays) taskChanged(id string, was, is *api.Task) {
	if !live(was) {
		was = nil
	}
	if !live(is) {
		is = nil
	}
	same := was != nil && is != nil && was.NodeID == is.NodeID && sameNetworks(was.Networks, is.Networks)
	if was == nil && is == nil || same && named(was) == named(is) && serving(was) == serving(is) {
		return
	}
	takesOut := was != nil && serving(was) && (is == nil || !serving(is))
	networks, nodes := map[string]struct{}{}, map[string]struct{}{}
	for _, t := range []*api.Task{was, is} {
		if t == nil {
			continue
		}
		for i := range t.Networks {
			networks[t.Networks[i].NetworkID] = struct{}{}
		}
		nodes[t.NodeID] = struct{}{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := range networks { // each once, so that nobody is told twice
		for s := range o.byNetwork[n] {
			s.mark(func(m *marks) {
				m.network(n).endpoints[id] = struct{}{}
				m.takesOut = m.takesOut || takesOut
			})
		}
	}
	for n := range nodes {
		if !same {
			o.atNode(n, func(m *marks) { m.own = true })
		}
	}
}

func sameNetworks(a, b []api.NetworkAttachment) bool {
	return slices.EqualFunc(a, b, func(x, y api.NetworkAttachment) bool {
		return x.NetworkID == y.NetworkID && slices.Equal(x.Addresses, y.Addresses) && slices.Equal(x.Aliases, y.Aliases)
	})
}

// live reports whether a task has its place in its networks: from when a node is
// to run it, so that others can reach it once it does, until it has ended.
func live(t *api.Task) bool {
	return t != nil && t.NodeID != "" && len(t.Networks) > 0 && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) && !api.Final(t.Status.State)
}

// named reports whether a live task is found by its own names: while it starts,
// since tasks may need each other to become ready, and until it is to stop.
func named(t *api.Task) bool {
	return api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateStarting) && !api.ToldToEnd(t.DesiredState)
}

// serving reports whether a live task is to be given new work, if its node has
// joined.
func serving(t *api.Task) bool {
	return t.ServiceID != "" && t.JobIteration == nil && api.Ready(t) && !api.ToldToEnd(t.DesiredState)
}

// serviceChanged marks what the change of a service means to the nodes that know
// it.
func (o *overlays) serviceChanged(id string, was, is *api.Service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	networks := map[string]struct{}{}
	for _, s := range []*api.Service{was, is} {
		for _, n := range networksOf(s, o.ingress) {
			networks[n] = struct{}{}
		}
	}
	for n := range networks {
		if !proto.Equal(serviceIn(was, n, n == o.ingress), serviceIn(is, n, n == o.ingress)) {
			o.inNetwork(n, func(m *networkMarks) { m.services[id] = struct{}{} })
		}
	}
}

// networkChanged notes which network is the ingress network.
func (o *overlays) networkChanged(id string, was, is *api.Network) {
	if (was == nil || !was.Spec.Ingress) && (is == nil || !is.Spec.Ingress) {
		return
	}
	o.mu.Lock()
	if is != nil {
		o.ingress = id
		o.inNetwork(id, func(m *networkMarks) { m.whole = true })
	} else if o.ingress == id {
		o.ingress = ""
	}
	o.mu.Unlock()
	if was == nil || is == nil {
		o.every(func(m *marks) { m.own = true })
	}
}

// nodeChanged marks what the change of a node means to those that have tasks in
// networks with its own, and to the routing mesh.
func (o *overlays) nodeChanged(view *store.View, id string, was, is *api.Node) {
	if is != nil && was != nil && (dataAddr(was) != dataAddr(is) || joined(was) != joined(is)) {
		o.mu.Lock()
		for t := range store.List[*api.Task](view, store.ByNode(id)) {
			for i := range t.Networks {
				o.inNetwork(t.Networks[i].NetworkID, func(m *networkMarks) { m.endpoints[t.ID] = struct{}{} })
			}
		}
		o.mu.Unlock()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	own := !slices.Equal(meshAddresses(was, o.ingress), meshAddresses(is, o.ingress))
	if own {
		o.atNode(id, func(m *marks) { m.network(o.ingress).self = true })
	}
	if own || dataAddr(was) != dataAddr(is) {
		o.inNetwork(o.ingress, func(m *networkMarks) { m.endpoints[id] = struct{}{} })
	}
}
