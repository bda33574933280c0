package linux

import (
	"net"

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
	var udp *net.UDPConn
	var tcp *net.TCPListener
	if m.is.Resolver != nil {
		var err error
		if udp, tcp, err = listenDNS(0); err != nil {
			return
		}
		t.leadDNS(portOf(udp.LocalAddr()), portOf(tcp.Addr()), true)
	}
	if meshed {
		t.box(box, true, false)
		meshed = box.route(n.in, n.ipv4, true) == nil
	}
	if err := p.commit(&t); err != nil {
		p.log.Debug("network: rules in a new sandbox are tried one by one", "sandbox", m.is.ID, "error", err)
		if udp != nil {
			_, _ = udp.Close(), tcp.Close()
		}
		return
	}
	if udp != nil {
		m.resolver = p.resolvers.serve(m.is, udp, tcp)
	}
	if meshed {
		m.box = &box
	}
}

// adopt takes over what was done for sandboxes. Only Set calls it.
func (p *Plane) adopt(all map[string]made) {
	for id, m := range all {
		if m.touched {
			delete(p.mesh.boxes, id)
		}
		if m.resolver != nil {
			p.resolvers.adopt(id, m.resolver)
		}
		if m.box != nil {
			if p.mesh.boxes == nil {
				p.mesh.boxes = map[string]meshBox{}
			}
			p.mesh.boxes[id] = *m.box
		}
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
