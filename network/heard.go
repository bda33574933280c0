package network

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// peersOf are the nodes that have a part in an overlay, as far as managers have told
// this one. Callers hold mu.
func (n *Networks) peersOf(w *netw) []dnet.PeerInfo {
	heard := n.told[w.Network.ID]
	if heard == nil {
		return nil
	}
	at := map[netip.Addr]bool{}
	if (len(w.users) > 0 || w.Network.ID == n.mesh.network) && n.underlay.Local.IsValid() {
		at[n.underlay.Local] = true
	}
	for _, e := range heard.endpoints {
		if e.Node.IsValid() {
			at[e.Node] = true
		}
	}
	names := map[netip.Addr]string{}
	if mesh := n.told[n.mesh.network]; mesh != nil {
		for id, e := range mesh.endpoints {
			if e.Service == "" { // a node's own
				names[e.Node] = id[:min(shortID, len(id))]
			}
		}
	}
	var all []dnet.PeerInfo
	for _, a := range slices.SortedFunc(maps.Keys(at), netip.Addr.Compare) {
		all = append(all, dnet.PeerInfo{Name: cmp.Or(names[a], a.String()), IP: a})
	}
	return all
}

// Services are those of a network of the swarm with their tasks, by name, as far as
// managers have told this node. Containers of no service are under no name.
func (n *Networks) Services(name string) (map[string]dnet.ServiceInfo, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, err := n.lookup(name)
	if err != nil {
		return nil, err
	}
	heard := n.told[w.Network.ID]
	if heard == nil {
		return nil, nil
	}
	infos := map[string]dnet.ServiceInfo{}
	for id, s := range heard.services {
		info := dnet.ServiceInfo{Ports: n.portsTold(id), Tasks: []dnet.Task{}}
		if len(s.VirtualAddresses) > 0 {
			info.VIP = s.VirtualAddresses[0]
		}
		infos[s.Name] = info
	}
	for _, id := range slices.Sorted(maps.Keys(heard.endpoints)) {
		e := heard.endpoints[id]
		s := heard.services[e.Service]
		if e.Name == "" || len(e.Addresses) == 0 || s == nil && e.Service != "" {
			continue
		}
		of := ""
		if s != nil {
			of = s.Name
		}
		info, ok := infos[of]
		if !ok {
			info.Ports = []string{}
		}
		info.Tasks = append(info.Tasks, n.taskTold(e))
		infos[of] = info
	}
	for _, info := range infos {
		slices.SortFunc(info.Tasks, func(a, b dnet.Task) int { return cmp.Compare(a.Name, b.Name) })
	}
	return infos, nil
}

func (n *Networks) taskTold(e *api.OverlayEndpoint) dnet.Task {
	host := e.Node
	if !host.IsValid() {
		host = n.underlay.Local
	}
	return dnet.Task{Name: e.Name, EndpointID: e.ID, EndpointIP: e.Addresses[0], Info: map[string]string{"Host IP": host.String()}}
}

// portsTold are those that a service publishes by the routing mesh, as inspect shows
// them.
func (n *Networks) portsTold(service string) []string {
	l := []string{}
	if mesh := n.told[n.mesh.network]; mesh != nil && mesh.services[service] != nil {
		for _, p := range mesh.services[service].Ports {
			l = append(l, fmt.Sprintf("Target: %d, Publish: %d", p.Target, p.Published))
		}
	}
	return l
}
