package networktest

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/legion-swarm/legion/network"
)

// randomServices adds what a swarm's managers tell: names, virtual addresses,
// ports of the routing mesh, keys.
func randomServices(c *network.Config, draw func(string) bool) {
	vip, backends := netip.MustParseAddr("10.0.9.100"), []netip.Addr{netip.MustParseAddr("10.0.9.2"), netip.MustParseAddr("10.0.9.200")}
	if draw("a zone") {
		z := &network.Zone{ID: "net1", Name: "backend", Names: map[string][]netip.Addr{"web": {vip}}, Owners: map[netip.Addr]string{vip: "web.backend"}}
		if draw("another name") {
			z.Names["tasks.web"] = backends
		}
		c.Zones = map[string]*network.Zone{z.ID: z}
	}
	if draw("a balancer") {
		b := &network.Balancer{BalancerKey: network.BalancerKey{Network: "net1", Address: vip}, Backends: backends}
		if draw("one backend") {
			b.Backends, b.Balance = backends[:1], network.BalanceClient
		}
		c.Balancers = map[network.BalancerKey]*network.Balancer{b.BalancerKey: b}
	}
	if c.Overlays["net1"] != nil && draw("a mesh") {
		c.Mesh = &network.Mesh{Overlay: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9.9/24")}}
		p := &network.MeshPort{MeshKey: network.MeshKey{Protocol: network.TCP, Port: 22000}, Target: 80, Backends: backends}
		if draw("on one address") {
			p.On = []netip.Prefix{netip.MustParsePrefix("10.99.0.1/32")}
		}
		c.MeshPorts = map[network.MeshKey]*network.MeshPort{p.MeshKey: p}
	}
	if draw("keys") {
		c.Keys = twoKeys()
	}
}

func twoKeys() network.Keys { return network.Keys{All: []network.Key{{ID: 1}, {ID: 2}}, Send: 2} }

// testEncrypted has an overlay become encrypted, which it is without keys, too: then
// nothing passes, and that is said.
func testEncrypted(t *testing.T, h *Harness) {
	c := Sample(1)
	h.set(t, c)
	e := c.Clone()
	o := *c.Overlays["net1"]
	o.Encrypted = true
	e.Overlays[o.ID] = &o
	err := h.Plane.Set(t.Context(), e)
	var se *network.SetError
	if !errors.As(err, &se) || len(se.Items) != 1 || se.Items[network.TunnelItem(o.ID)] == nil {
		t.Fatalf("without keys: %v", err)
	}
	h.expect(t, e)
	with := e.Clone()
	with.Keys = twoKeys()
	h.set(t, with)
	h.set(t, with.Clone())
	h.Plane = h.Reopen()
	h.set(t, with)
	h.set(t, c)
}
