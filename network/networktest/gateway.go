package networktest

import (
	"net/netip"
	"testing"

	"github.com/legion-swarm/legion/network"
)

// randomGateways changes how the bridges' containers are reached from outside.
func randomGateways(c *network.Config, draw func(string) bool) {
	if b := *c.Bridges["legion0"]; draw("routed") {
		b.Mode4 = network.GatewayRouted
		c.Bridges["legion0"] = &b
	}
	other := c.Bridges["legion1"]
	if other == nil {
		return
	}
	b := *other
	if draw("no address of IPv4") {
		b.Bare = []netip.Prefix{b.Addresses[0].Masked()}
		b.Addresses = b.Addresses[1:]
	}
	switch {
	case draw("trusts a device"):
		b.Trusted = []string{"up0"}
	case draw("trusts all"):
		b.TrustAll = true
	case draw("unprotected"):
		b.Mode4, b.Mode6 = network.GatewayUnprotected, network.GatewayUnprotected
	case draw("a source"):
		b.Source4 = netip.MustParseAddr("10.99.0.1")
	}
	c.Bridges["legion1"] = &b
}

// openPorts has published ports of the first bridge, if that is routed, be open at
// their targets.
func openPorts(c *network.Config) {
	if b := c.Bridges["legion0"]; b == nil || b.Mode4 != network.GatewayRouted {
		return
	}
	subnet := Sample(0).Bridges["legion0"].Addresses[0]
	for k, p := range c.Ports {
		if !subnet.Contains(p.Target.Addr()) {
			continue
		}
		open := &network.Port{PortKey: network.PortKey{Protocol: k.Protocol, Host: p.Target}, Target: p.Target, Sandbox: p.Sandbox, Open: true}
		delete(c.Ports, k)
		c.Ports[open.PortKey] = open
	}
}

// routed is Sample with the first bridge routed.
func routed(n int) *network.Config {
	c := Sample(n)
	b := *c.Bridges["legion0"]
	b.Mode4 = network.GatewayRouted
	c.Bridges["legion0"] = &b
	openPorts(c)
	return c
}

// testOpen opens and closes ports. Whether processes of the host have them is no matter.
func testOpen(t *testing.T, h *Harness) {
	release := h.Occupy(network.PortKey{Protocol: network.TCP, Host: netip.MustParseAddrPort("0.0.0.0:80")})
	defer release()
	c := routed(3)
	h.set(t, c)
	less := c.Clone()
	for k, p := range c.Ports {
		if p.Sandbox == "s0-1" {
			delete(less.Ports, k)
		}
	}
	h.set(t, less)
	h.Plane = h.Reopen()
	h.set(t, c)
	h.set(t, Sample(3))
	h.set(t, c)
	h.set(t, (*network.Config)(nil).Clone())
	wrong := c.Clone()
	for k, p := range c.Ports {
		if p.Open {
			q := *p
			q.Target = netip.AddrPortFrom(p.Target.Addr(), 81)
			wrong.Ports[k] = &q
		}
	}
	if err := h.Plane.Set(t.Context(), wrong); err == nil {
		t.Error("a port that is open elsewhere than where it leads was set")
	}
}
