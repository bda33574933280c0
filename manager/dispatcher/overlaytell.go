package dispatcher

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// endpointUpdates returns what to tell a node, and the networks that it knows of
// then.
func (d *Dispatcher) endpointUpdates(s *endpointStream, known map[string]struct{}) ([]*swarmpb.EndpointsUpdate, map[string]struct{}) {
	m, number := s.marked()
	now := known
	if m.all || m.own {
		now = networksAt(d.cfg.Store.View(), s.node, d.overlays.ingressNetwork())
		d.overlays.follow(s, known, now)
	}
	view := d.cfg.Store.View() // after follow: what changes from now on is marked
	cluster := clusterIn(view)
	t := &telling{view: view, node: s.node, names: &d.names, updates: []*swarmpb.EndpointsUpdate{{Complete: m.all, DataPort: dataPort(cluster)}}}
	if k := keysFor(view, now, s.keys); k != nil {
		t.updates[0].Keys, s.keys = k, k
	}
	for _, id := range slices.Sorted(maps.Keys(now)) {
		_, knew := known[id]
		switch n := m.networks[id]; {
		case m.all || !knew || n != nil && n.whole:
			t.whole(id)
		case n != nil:
			t.changes(id, n)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		if _, stays := now[id]; !stays && !m.all {
			t.open(id).Gone = true
		}
	}
	if !m.all && len(t.updates[0].GetNetworks()) == 0 && t.updates[0].GetKeys() == nil {
		s.confirm(number)
		return nil, now
	}
	t.updates[len(t.updates)-1].Number = number
	return t.updates, now
}

func dataPort(c *api.Cluster) uint32 {
	if c != nil && c.DataPathPort != 0 {
		return c.DataPathPort
	}
	return defaultDataPort
}

// networksAt are the networks that a node has a task in, and the ingress network.
func networksAt(view *store.View, node, ingress string) map[string]struct{} {
	nets := map[string]struct{}{}
	if ingress != "" {
		nets[ingress] = struct{}{}
	}
	for t := range store.List[*api.Task](view, store.ByNode(node)) {
		if !live(t) {
			continue
		}
		for i := range t.Networks {
			if len(t.Networks[i].Addresses) > 0 {
				nets[t.Networks[i].NetworkID] = struct{}{}
			}
		}
	}
	return nets
}

// telling makes updates of bounded size for a node.
type telling struct {
	view    *store.View
	node    string
	names   *ownNames
	updates []*swarmpb.EndpointsUpdate
	size    int // bytes in the last one, about
}

// open begins to tell of a network, or goes on in another update.
func (t *telling) open(id string) *swarmpb.NetworkEndpoints {
	last := t.updates[len(t.updates)-1]
	if t.size >= maxUpdate {
		last.More = true
		last = &swarmpb.EndpointsUpdate{DataPort: last.GetDataPort()}
		t.updates, t.size = append(t.updates, last), 0
	}
	n := &swarmpb.NetworkEndpoints{NetworkId: id}
	last.Networks = append(last.Networks, n)
	return n
}

// room returns where to put m: in n, or in the next update.
func (t *telling) room(n *swarmpb.NetworkEndpoints, m proto.Message) *swarmpb.NetworkEndpoints {
	if t.size >= maxUpdate {
		n = t.open(n.GetNetworkId())
	}
	t.size += proto.Size(m)
	return n
}

func (t *telling) endpoint(n *swarmpb.NetworkEndpoints, e *swarmpb.OverlayEndpoint) *swarmpb.NetworkEndpoints {
	if e != nil {
		n = t.room(n, e)
		n.Put = append(n.Put, e)
	}
	return n
}

func (t *telling) service(n *swarmpb.NetworkEndpoints, s *swarmpb.OverlayService) *swarmpb.NetworkEndpoints {
	if s != nil {
		n = t.room(n, s)
		n.PutServices = append(n.PutServices, s)
	}
	return n
}

// whole tells of all that is in a network.
func (t *telling) whole(id string) {
	n := t.open(id)
	n.Whole = true
	o := store.Get[*api.Network](t.view, id)
	if ingress := o != nil && o.Spec.Ingress; !ingress {
		for s := range store.List[*api.Service](t.view, store.ByNetwork(id)) {
			n = t.service(n, serviceIn(s, id, false))
		}
		for task := range store.List[*api.Task](t.view, store.ByNetwork(id)) {
			n = t.endpoint(n, t.endpointOf(task, id))
		}
		return
	}
	t.self(n, o)
	for node := range store.List[*api.Node](t.view) {
		n = t.endpoint(n, t.nodeOf(node, id))
	}
	// No spec names the ingress network: the services are those that publish a port.
	for s := range store.List[*api.Service](t.view) {
		if !api.UsesIngress(s.Spec.EndpointSpec) {
			continue
		}
		n = t.service(n, serviceIn(s, id, true))
		for task := range store.List[*api.Task](t.view, store.ByService(s.ID)) {
			n = t.endpoint(n, t.endpointOf(task, id))
		}
	}
}

// self tells of the ingress network, and of the node's own addresses there.
func (t *telling) self(n *swarmpb.NetworkEndpoints, o *api.Network) {
	n.Network = swarmpb.NewNetwork(o)
	for _, a := range meshAddresses(store.Get[*api.Node](t.view, t.node), o.ID) {
		n.OwnAddresses = append(n.OwnAddresses, a.String())
	}
}

// changes tells of what has changed in a network.
func (t *telling) changes(id string, m *networkMarks) {
	n := t.open(id)
	o := store.Get[*api.Network](t.view, id)
	ingress := o != nil && o.Spec.Ingress
	if m.self && ingress {
		t.self(n, o)
	}
	for _, s := range slices.Sorted(maps.Keys(m.services)) {
		if r := serviceIn(store.Get[*api.Service](t.view, s), id, ingress); r != nil {
			n = t.service(n, r)
		} else {
			n.RemoveServices = append(n.RemoveServices, s)
		}
	}
	for _, e := range slices.Sorted(maps.Keys(m.endpoints)) {
		r := t.endpointOf(store.Get[*api.Task](t.view, e), id)
		if r == nil && ingress {
			r = t.nodeOf(store.Get[*api.Node](t.view, e), id)
		}
		if r != nil {
			n = t.endpoint(n, r)
		} else {
			n.Remove = append(n.Remove, e)
		}
	}
}

// endpointOf is a task as an endpoint of a network; nil if it is none.
func (t *telling) endpointOf(task *api.Task, network string) *swarmpb.OverlayEndpoint {
	if !live(task) {
		return nil
	}
	i := slices.IndexFunc(task.Networks, func(a api.NetworkAttachment) bool { return a.NetworkID == network })
	node := store.Get[*api.Node](t.view, task.NodeID)
	e := &swarmpb.OverlayEndpoint{Id: task.ID, ServiceId: task.ServiceID, Serving: serving(task) && joined(node)}
	if task.NodeID != t.node {
		e.NodeAddr = dataAddr(node)
	}
	if i < 0 || len(task.Networks[i].Addresses) == 0 || task.NodeID != t.node && e.GetNodeAddr() == "" {
		return nil
	}
	if named(task) && task.Spec != nil {
		e.Name, e.Aliases = task.Name(), t.names.of(task, &task.Networks[i], node)
	}
	if task.Attachment() { // of a service, they are the service's
		e.Aliases = task.Networks[i].Aliases
	}
	e.Addresses = addresses(task.Networks[i].Addresses)
	return e
}

// nodeOf is a node as an endpoint of the ingress network, for other nodes.
func (t *telling) nodeOf(n *api.Node, ingress string) *swarmpb.OverlayEndpoint {
	own := meshAddresses(n, ingress)
	if len(own) == 0 || n.ID == t.node || dataAddr(n) == "" {
		return nil
	}
	return &swarmpb.OverlayEndpoint{Id: n.ID, NodeAddr: dataAddr(n), Addresses: addresses(own)}
}

func addresses(in []netip.Prefix) []string {
	out := make([]string, 0, len(in))
	for _, a := range in {
		out = append(out, a.Addr().String())
	}
	return out
}

// networksOf are those that a service is known in.
func networksOf(s *api.Service, ingress string) []string {
	if s == nil {
		return nil
	}
	var ids []string
	for i := range s.Spec.TaskTemplate.Networks {
		ids = append(ids, s.Spec.TaskTemplate.Networks[i].Target)
	}
	if ingress != "" && api.UsesIngress(s.Spec.EndpointSpec) {
		ids = append(ids, ingress)
	}
	return ids
}

// serviceIn is a service as it is known in a network; nil if it isn't. Nobody asks
// jobs for anything.
func serviceIn(s *api.Service, network string, ingress bool) *swarmpb.OverlayService {
	if s == nil || s.Job() {
		return nil
	}
	policy, err := api.ParsePolicy(s.Spec.Labels)
	if err != nil {
		policy = api.DefaultPolicy() // the labels are of a time when they were good
	}
	o := &swarmpb.OverlayService{Id: s.ID, Name: s.Spec.Name, Balance: string(policy.Balance)}
	for _, v := range s.Endpoint.VirtualIPs {
		if v.NetworkID == network {
			o.VirtualAddresses = append(o.VirtualAddresses, v.Addr.Addr().String())
		}
	}
	if ingress {
		for _, p := range s.Endpoint.Ports {
			if p.PublishMode != swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
				o.Ports = append(o.Ports, &swarmpb.OverlayPort{Protocol: string(p.Protocol), Published: p.PublishedPort, Target: p.TargetPort, On: policy.PublishOn})
			}
		}
		if len(o.GetPorts()) == 0 {
			return nil
		}
		return o
	}
	attached := s.Spec.TaskTemplate.Networks
	i := slices.IndexFunc(attached, func(a swarm.NetworkAttachmentConfig) bool { return a.Target == network })
	roundRobin := s.Spec.EndpointSpec != nil && s.Spec.EndpointSpec.Mode == swarm.ResolutionModeDNSRR
	if i < 0 || len(o.GetVirtualAddresses()) == 0 && !roundRobin {
		return nil // not allocated yet
	}
	for _, a := range attached[i].Aliases {
		if !templated(a) {
			o.Aliases = append(o.Aliases, a)
		}
	}
	return o
}

// meshAddresses are a node's own in the ingress network.
func meshAddresses(n *api.Node, ingress string) []netip.Prefix {
	if n == nil {
		return nil
	}
	return n.IngressAddresses(ingress)
}

// joined reports whether a node's tasks can be reached by overlays: it is there, and
// has asked where the others are. A node that is a Docker Engine never does.
func joined(n *api.Node) bool {
	return n != nil && n.DataAddr != "" && n.Status.State != swarm.NodeStateDown
}

// dataAddr is where other nodes send what is for a node's endpoints; empty if it
// is not known.
func dataAddr(n *api.Node) string {
	if n == nil {
		return ""
	}
	if n.DataAddr != "" {
		return n.DataAddr
	}
	return n.Status.Addr
}
