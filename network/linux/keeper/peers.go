package keeper

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/legion-swarm/legion/network/crypt"
)

// peersBetween returns what makes overlays' peers of others, in parts; none if they
// are the same.
func peersBetween(from, to map[string]Peers) (parts []*peersDelta) {
	last, size := &peersDelta{}, 0
	for _, id := range slices.Sorted(maps.Keys(from)) {
		if _, stays := to[id]; !stays {
			last.Drop = append(last.Drop, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(to)) {
		was, known := from[id]
		now := to[id]
		d := overlayDelta{Overlay: id, VNI: now.VNI}
		changed := !known || was.VNI != now.VNI
		for mac := range was.Nodes {
			if _, stays := now.Nodes[mac]; !stays {
				d.Drop = append(d.Drop, mac)
			}
		}
		for mac, node := range now.Nodes {
			if n, known := was.Nodes[mac]; known && n == node {
				continue
			}
			if d.Put = append(d.Put, nodeDelta{mac, node}); size+len(d.Put) >= portion {
				last.Overlays, last.More = append(last.Overlays, d), true
				parts = append(parts, last)
				last, size = &peersDelta{}, 0
				d, changed = overlayDelta{Overlay: id, VNI: now.VNI}, false
			}
		}
		if changed || len(d.Put)+len(d.Drop) > 0 {
			last.Overlays = append(last.Overlays, d)
			size += len(d.Put) + len(d.Drop)
		}
	}
	if len(last.Drop)+len(last.Overlays) > 0 {
		return append(parts, last)
	}
	if len(parts) > 0 {
		parts[len(parts)-1].More = false
	}
	return parts
}

// applyPeers changes peers. Overlays' maps that are changed are new ones.
func applyPeers(all map[string]Peers, d *peersDelta) {
	for _, id := range d.Drop {
		delete(all, id)
	}
	for _, o := range d.Overlays {
		nodes := maps.Clone(all[o.Overlay].Nodes)
		if nodes == nil {
			nodes = make(map[crypt.MAC]netip.Addr, len(o.Put))
		}
		for _, mac := range o.Drop {
			delete(nodes, mac)
		}
		for _, n := range o.Put {
			nodes[n.MAC] = n.Node
		}
		all[o.Overlay] = Peers{o.VNI, nodes}
	}
}
