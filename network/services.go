package network

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// services is what follows, for this node, from what managers have said of an
// overlay and from the containers that are in it here. It is made when it is
// needed, and never changed.
type services struct {
	overlay   *Overlay
	zone      *Zone // nil: no container here asks
	balancers []*Balancer
	ports     []*MeshPort
}

// place is an endpoint as seen from this node.
type place struct {
	addrs   []netip.Addr
	service string
	name    string   // its own
	aliases []string // its further names
	serving bool
}

// tasksPrefix before a service's name stands for its tasks, not their common
// address.
const tasksPrefix = "tasks."

// servicesOf returns what is to be of an overlay; nil while neither a container is
// in it nor the routing mesh uses it. Callers hold mu.
func (n *Networks) servicesOf(w *netw) *services {
	if len(w.users) == 0 && n.mesh.network != w.Network.ID {
		return nil
	}
	if w.services == nil {
		w.services = n.makeServices(w)
	}
	return w.services
}

func (n *Networks) makeServices(w *netw) *services {
	id := w.Network.ID
	heard := n.told[id]
	s := &services{overlay: &Overlay{ID: id, VNI: w.Overlay.VNI, MTU: n.overlayMTU(w), Encrypted: w.Overlay.Encrypted}}
	for _, c := range w.Network.IPAM.Config {
		if c.Gateway.IsValid() {
			s.overlay.Addresses = append(s.overlay.Addresses, netip.PrefixFrom(c.Gateway, c.Subnet.Bits()))
		}
	}
	if heard == nil {
		heard = &told{}
	}
	places := n.placesHere(w, heard)
	here := map[netip.Addr]bool{}
	for _, p := range places {
		for _, a := range p.addrs {
			here[a] = true
		}
	}
	s.overlay.Unknown = !heard.fresh
	s.overlay.Peers = make([]Peer, 0, len(heard.endpoints))
	places = slices.Grow(places, len(heard.endpoints))
	for _, e := range heard.endpoints {
		if !e.Node.IsValid() || len(here) > 0 && slices.ContainsFunc(e.Addresses, func(a netip.Addr) bool { return here[a] }) {
			continue // this node knows better
		}
		s.overlay.Peers = append(s.overlay.Peers, peerOf(e))
		places = append(places, place{addrs: e.Addresses, service: e.Service, name: e.Name, aliases: e.Aliases, serving: e.Serving})
	}
	slices.SortFunc(s.overlay.Peers, Peer.Compare)
	s.overlay.Peers = slices.Compact(s.overlay.Peers)
	serving := map[string][]netip.Addr{} // by service
	for _, p := range places {
		if p.serving && p.service != "" {
			serving[p.service] = append(serving[p.service], p.addrs...)
		}
	}
	for id, list := range serving {
		slices.SortFunc(list, netip.Addr.Compare)
		serving[id] = slices.Compact(list)
	}
	if id == n.mesh.network {
		s.ports = n.meshPorts(heard, serving)
	}
	// The ingress network is for the routing mesh, and has no names.
	if len(w.users) > 0 && !w.Network.Ingress {
		s.zone = zoneOf(w, heard, places, serving)
		s.balancers = balancersOf(id, heard, serving)
	}
	return s
}

func peerOf(e *api.OverlayEndpoint) Peer {
	p := Peer{Node: e.Node}
	for _, a := range e.Addresses {
		if a.Is4() {
			p.Address = a
		} else {
			p.Address6 = a
		}
	}
	return p
}

// placesHere are those of the containers on this node. Callers hold mu.
func (n *Networks) placesHere(w *netw, heard *told) []place {
	// What managers say of this node's own counts only for containers of which
	// nothing is known here, as after an upgrade.
	own := map[netip.Addr]*api.OverlayEndpoint{}
	for _, e := range heard.endpoints {
		for _, a := range e.Addresses {
			if !e.Node.IsValid() {
				own[a] = e
			}
		}
	}
	places := make([]place, 0, len(w.users))
	for container := range w.users {
		b := n.boxes[container]
		i := slices.IndexFunc(b.Endpoints, func(e endpoint) bool { return e.NetworkID == w.Network.ID })
		if i < 0 {
			continue
		}
		s := b.Endpoints[i].Settings
		p := place{}
		for _, a := range []netip.Addr{s.IPAddress, s.GlobalIPv6Address} {
			if a.IsValid() {
				p.addrs = append(p.addrs, a)
			}
		}
		said := &api.OverlayEndpoint{}
		for _, a := range p.addrs {
			if e := own[a]; e != nil {
				said = e
			}
		}
		t := n.tasks[container]
		if p.service, p.serving = said.Service, said.Serving; t != nil {
			p.service, p.serving = t.Service, t.Stage == taskServing
		}
		if t == nil || t.Stage != taskDraining {
			p.name, p.aliases = namesOf(s, p.service != "", said)
		}
		places = append(places, p)
	}
	return places
}

// namesOf are those of a container on this node, its own first. A service's aliases
// are not its tasks'.
func namesOf(s *dnet.EndpointSettings, task bool, said *api.OverlayEndpoint) (own string, more []string) {
	names := s.DNSNames
	if task {
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(s.Aliases, name) })
	}
	if len(names) > 0 {
		own, more = names[0], names[1:]
	}
	if task {
		more = slices.Concat(more, said.Aliases)
	}
	return own, more
}

// zoneOf makes an overlay's names. A name that a service has is the service's
// alone: a task may have it as its host name.
func zoneOf(w *netw, heard *told, places []place, serving map[string][]netip.Addr) *Zone {
	z := &Zone{ID: w.Network.ID, Name: w.Network.Name, Names: make(map[string][]netip.Addr, len(places)+4*len(heard.services)), Owners: make(map[netip.Addr]string, len(places)+len(heard.services))}
	for id, s := range heard.services {
		addrs := s.VirtualAddresses
		if len(addrs) == 0 {
			addrs = serving[id]
		} else {
			z.own(s.Name, addrs)
		}
		for _, name := range append([]string{s.Name}, s.Aliases...) {
			if name != "" {
				z.add(name, addrs)
				z.add(tasksPrefix+name, serving[id])
			}
		}
	}
	services := make(map[string]bool, len(z.Names))
	for name := range z.Names {
		services[name] = true
	}
	for i := range places {
		p := &places[i]
		if z.addUnless(services, p.name, p.addrs); p.name != "" {
			z.own(p.name, p.addrs)
		}
		for _, name := range p.aliases {
			z.addUnless(services, name, p.addrs)
		}
	}
	for name, addrs := range z.Names {
		if len(addrs) > 1 {
			addrs = slices.Clone(addrs)
			slices.SortFunc(addrs, netip.Addr.Compare)
			z.Names[name] = slices.Compact(addrs)
		}
	}
	return z
}

func foldName(name string) string { return strings.ToLower(strings.TrimRight(name, ".")) }

// add has a name stand for addresses, besides those that it stands for already.
// Only for zones that are being made.
func (z *Zone) add(name string, addrs []netip.Addr) {
	z.addUnless(nil, name, addrs)
}

// addUnless is add for a name that is not taken.
func (z *Zone) addUnless(taken map[string]bool, name string, addrs []netip.Addr) {
	if name = foldName(name); name == "" || taken[name] {
		return
	}
	if had := z.Names[name]; len(had) > 0 {
		addrs = slices.Concat(had, addrs)
	}
	z.Names[name] = addrs
}

// own names the owner of addresses. Only for zones that are being made.
func (z *Zone) own(name string, addrs []netip.Addr) {
	for _, a := range addrs {
		z.Owners[a] = name + "." + z.Name
	}
}

func balancersOf(network string, heard *told, serving map[string][]netip.Addr) []*Balancer {
	var all []*Balancer
	taken := map[netip.Addr]bool{}
	for _, id := range slices.Sorted(maps.Keys(heard.services)) {
		s := heard.services[id]
		for _, a := range s.VirtualAddresses {
			if taken[a] {
				continue // in the moment between a service and the next with its address
			}
			taken[a] = true
			b := &Balancer{BalancerKey: BalancerKey{Network: network, Address: a}, Balance: balanceOf(s)}
			for _, x := range serving[id] {
				if x.Is4() == a.Is4() {
					b.Backends = append(b.Backends, x)
				}
			}
			all = append(all, b)
		}
	}
	return all
}

// balanceOf is how a service's tasks are chosen; what this node doesn't know is
// none.
func balanceOf(s *api.OverlayService) Balance {
	switch b := Balance(s.Balance); b {
	case BalanceClient, BalanceLeast, BalanceRandom:
		return b
	}
	return BalanceRandom
}

// meshPorts are those that services publish.
func (n *Networks) meshPorts(heard *told, serving map[string][]netip.Addr) []*MeshPort {
	if len(n.mesh.own) == 0 {
		return nil
	}
	var all []*MeshPort
	taken := map[MeshKey]bool{}
	for _, id := range slices.Sorted(maps.Keys(heard.services)) {
		s := heard.services[id]
		for i := range s.Ports {
			o := &s.Ports[i]
			p := &MeshPort{MeshKey: MeshKey{Protocol: Protocol(o.Protocol), Port: o.Published}, Target: o.Target, Backends: serving[id], Balance: balanceOf(s)}
			if taken[p.MeshKey] || p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP {
				continue
			}
			for _, where := range o.On {
				switch on, device, err := api.PublishPlace(where); {
				case err != nil:
				case device != "":
					p.Devices = append(p.Devices, device)
				default:
					p.On = append(p.On, on)
				}
			}
			if len(o.On) > 0 && len(p.On)+len(p.Devices) == 0 {
				continue // restricted, to what this node does not understand
			}
			taken[p.MeshKey] = true
			all = append(all, p)
		}
	}
	return all
}

// configServices puts what follows from overlays into a config. Callers hold mu.
func (n *Networks) configServices(c *Config) {
	c.Keys = n.keys
	for _, w := range n.nets {
		if w.Overlay == nil {
			continue
		}
		s := n.servicesOf(w)
		if s == nil {
			continue
		}
		c.Overlays[w.Network.ID] = s.overlay
		if s.zone != nil {
			c.Zones[s.zone.ID] = s.zone
		}
		for _, b := range s.balancers {
			c.Balancers[b.BalancerKey] = b
		}
		for _, p := range s.ports {
			c.MeshPorts[p.MeshKey] = p
		}
		if w.Network.ID == n.mesh.network && len(n.mesh.own) > 0 {
			c.Mesh = &Mesh{Overlay: w.Network.ID, Addresses: n.mesh.own, Routes: w.beyond(n.mesh.own)}
		}
	}
}
