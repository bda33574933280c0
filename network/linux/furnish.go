package linux

import (
	"github.com/legion-swarm/legion/network"
)

// furnish has names answered in a sandbox that was made just now, and prepares it for
// published ports if it is in the overlay mesh, in one transaction: the thread is in
// its namespace. What fails is left to setResolvers and setMesh, which do one thing
// at a time and say what is wrong.
func (n *inside) furnish(m *made, mesh string) {
	p := n.p
	box, meshed := meshBox{}, false
	if mesh != "" {
		box, meshed = p.meshBoxOf(m.is, mesh)
	}
	if m.is.Resolver == nil && !meshed {
		return
	}
	var t transaction
	var open *opened
	if m.is.Resolver != nil {
		var udp, tcp uint16
		var err error
		if open, udp, tcp, err = p.listenDNS(m.is, 0); err != nil {
			return
		}
		t.leadDNS(udp, tcp, true)
	}
	if meshed {
		t.box(box, true, false)
		meshed = box.route(n.in, n.ipv4, true) == nil
	}
	if err := p.commit(&t); err != nil {
		p.log.Debug("network: rules in a new sandbox are tried one by one", "sandbox", m.is.ID, "error", err)
		if open != nil {
			open.close()
		}
		return
	}
	m.resolver = open
	if meshed {
		m.box = &box
	}
}

// adopt takes over what was done for sandboxes. Only Set calls it.
func (p *Plane) adopt(all map[string]made) {
	var open []*opened
	for id, m := range all {
		if m.touched {
			delete(p.mesh.boxes, id)
		}
		if m.resolver != nil {
			open = append(open, m.resolver)
		}
		if m.box != nil {
			if p.mesh.boxes == nil {
				p.mesh.boxes = map[string]meshBox{}
			}
			p.mesh.boxes[id] = *m.box
		}
	}
	if len(open) == 0 {
		return
	}
	if err := p.answer(open); err != nil {
		p.log.Debug("network: names in new sandboxes are answered later", "error", err)
	}
}

// meshOverlay is the overlay whose sandboxes are to be prepared for published ports;
// empty: none.
func meshOverlay(c *network.Config) string {
	if c.Mesh == nil || !c.Rules4 && !c.Rules6 {
		return ""
	}
	return c.Mesh.Overlay
}
