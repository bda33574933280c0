package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// attached calls fn for each running task of a network, with its address there.
func attached(r store.Reader, n *api.Network, fn func(t *api.Task, a netip.Addr)) {
	each := func(t *api.Task) {
		if t.Status.State != swarm.TaskStateRunning {
			return
		}
		for i := range t.Networks {
			if a := &t.Networks[i]; a.NetworkID == n.ID && len(a.Addresses) > 0 {
				fn(t, a.Addresses[0].Addr())
			}
		}
	}
	if !n.Spec.Ingress {
		for t := range store.List[*api.Task](r, store.ByNetwork(n.ID)) {
			each(t)
		}
		return
	}
	for s := range store.List[*api.Service](r) { // no spec names it
		if api.UsesIngress(s.Spec.EndpointSpec) {
			for t := range store.List[*api.Task](r, store.ByService(s.ID)) {
				each(t)
			}
		}
	}
}

// shortID is how many characters of an id Docker shows for a peer.
const shortID = 12

// peers are the nodes that run a task in the network.
// Every node is in the ingress network.
func peers(r store.Reader, n *api.Network) []network.PeerInfo {
	seen := map[string]bool{}
	var all []network.PeerInfo
	if n.Spec.Ingress {
		for o := range store.List[*api.Node](r) {
			if len(o.IngressAddresses(n.ID)) > 0 {
				all = append(all, network.PeerInfo{Name: o.ID[:min(shortID, len(o.ID))], IP: nodeAddr(r, o.ID)})
			}
		}
		return all
	}
	attached(r, n, func(t *api.Task, _ netip.Addr) {
		if seen[t.NodeID] {
			return
		}
		seen[t.NodeID] = true
		p := network.PeerInfo{Name: t.NodeID[:min(shortID, len(t.NodeID))]}
		p.IP = nodeAddr(r, t.NodeID)
		all = append(all, p)
	})
	slices.SortFunc(all, func(a, b network.PeerInfo) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// nodeAddr is where the managers see a node; zero if they don't.
func nodeAddr(r store.Reader, id string) netip.Addr {
	if n := store.Get[*api.Node](r, id); n != nil {
		a, _ := netip.ParseAddr(n.Status.Addr)
		return a
	}
	return netip.Addr{}
}

// serviceInfos describes the services of a network and their running tasks.
func serviceInfos(r store.Reader, n *api.Network) map[string]network.ServiceInfo {
	infos := map[string]network.ServiceInfo{}
	names := map[string]string{}
	for _, name := range serviceUsers(r, n) {
		for s := range store.List[*api.Service](r, store.ByName(name)) {
			names[s.ID] = name
			infos[name] = serviceInfo(s, n)
		}
	}
	attached(r, n, func(t *api.Task, a netip.Addr) {
		name, ok := names[t.ServiceID]
		if !ok && !t.Attachment() {
			return
		}
		info, ok := infos[name] // containers of no service are under no name
		if !ok {
			info = network.ServiceInfo{Ports: []string{}}
		}
		info.Tasks = append(info.Tasks, network.Task{
			Name: t.Name(), EndpointID: t.ID, EndpointIP: a, Info: map[string]string{"Host IP": nodeAddr(r, t.NodeID).String()},
		})
		infos[name] = info
	})
	for _, info := range infos {
		slices.SortFunc(info.Tasks, func(a, b network.Task) int { return cmp.Compare(a.Name, b.Name) })
	}
	return infos
}

func serviceInfo(s *api.Service, n *api.Network) network.ServiceInfo {
	info := network.ServiceInfo{Ports: []string{}, Tasks: []network.Task{}}
	for _, v := range s.Endpoint.VirtualIPs {
		if v.NetworkID == n.ID && !info.VIP.IsValid() {
			info.VIP = v.Addr.Addr()
		}
	}
	for _, p := range s.Endpoint.Ports {
		info.Ports = append(info.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.TargetPort, p.PublishedPort))
	}
	return info
}
