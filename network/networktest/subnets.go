package networktest

import (
	"net/netip"
	"testing"

	"github.com/legion-swarm/legion/network"
)

// moreSubnets are what addSubnets gives the overlay, with its gateways there.
func moreSubnets() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.0.10.1/28"), netip.MustParsePrefix("10.8.0.1/24"), netip.MustParsePrefix("fd0a::1/64")}
}

// addSubnets gives the overlay, if there is one, subnets that its sandboxes and this
// node's part in the mesh have no address in, and an endpoint in one.
func addSubnets(c *network.Config) {
	was := c.Overlays["net1"]
	if was == nil {
		return
	}
	o := *was
	o.Addresses = append(o.Addresses[:len(o.Addresses):len(o.Addresses)], moreSubnets()...)
	if len(o.Peers) > 0 {
		o.Peers = append(o.Peers[:len(o.Peers):len(o.Peers)], network.Peer{Address: netip.MustParseAddr("10.0.10.2"), Address6: netip.MustParseAddr("fd0a::2"), Node: netip.MustParseAddr("10.99.0.3")})
	}
	c.Overlays[o.ID] = &o
	var routes []netip.Prefix
	for _, g := range moreSubnets() {
		routes = append(routes, g.Masked())
	}
	reach(c, o.ID, routes)
	if c.Mesh != nil {
		m := *c.Mesh
		if m.Routes = routes; len(m.Addresses) == 1 {
			m.Routes = routes[:2]
		}
		c.Mesh = &m
	}
}

// reach has what is in an overlay have routes there.
func reach(c *network.Config, overlay string, routes []netip.Prefix) {
	for id, s := range c.Sandboxes {
		n := *s
		n.Interfaces = append([]network.Interface{}, s.Interfaces...)
		for i := range n.Interfaces {
			if f := &n.Interfaces[i]; f.Overlay == overlay {
				f.Routes = routes
			}
		}
		c.Sandboxes[id] = &n
	}
}

// testSubnets has an overlay get further subnets and lose them: sandboxes stay as they
// are but for their routes, also if another data plane has made them, without.
func testSubnets(t *testing.T, h *Harness) {
	c := meshSample()
	h.set(t, c)
	before := h.Identity("o-0")
	several := c.Clone()
	addSubnets(several)
	h.set(t, several)
	fewer := several.Clone()
	reach(fewer, "net1", several.Sandboxes["o-0"].Interfaces[0].Routes[1:2])
	h.set(t, fewer)
	h.Plane = h.Reopen()
	h.expect(t, fewer)
	h.set(t, several)
	h.set(t, c)
	if h.Identity("o-0") != before {
		t.Error("a sandbox was replaced for its routes")
	}
	delete(c.Sandboxes, "o-0")
	h.set(t, c)
	h.set(t, several)
}
