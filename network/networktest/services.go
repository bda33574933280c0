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

// meshSample is Sample with a part in the routing mesh and two ports of it.
func meshSample() *network.Config {
	c := Sample(2)
	c.Mesh = &network.Mesh{Overlay: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9.9/24"), netip.MustParsePrefix("fd09::9/64")}}
	for i, proto := range []network.Protocol{network.TCP, network.UDP} {
		setMeshPort(c, network.MeshKey{Protocol: proto, Port: uint16(22000 + i)}, "10.0.9.2", "10.0.9.3", "10.0.9.200", "fd09::2")
	}
	return c
}

func setMeshPort(c *network.Config, k network.MeshKey, backends ...string) {
	p := &network.MeshPort{MeshKey: k, Target: 80}
	for _, a := range backends {
		p.Backends = append(p.Backends, netip.MustParseAddr(a))
	}
	c.MeshPorts[k] = p
}

// testMesh goes through the life of published ports.
func testMesh(t *testing.T, h *Harness) {
	c := meshSample()
	h.set(t, c)
	a, b := network.MeshKey{Protocol: network.TCP, Port: 22000}, network.MeshKey{Protocol: network.UDP, Port: 22001}
	for _, change := range []func(){
		func() { setMeshPort(c, a, "10.0.9.3", "10.0.9.200") },
		func() { setMeshPort(c, a) },
		func() { setMeshPort(c, a, "10.0.9.2") },
		func() { c.MeshPorts[a].Balance = network.BalanceLeast },
		func() { c.MeshPorts[b].Target = 81 },
		func() { delete(c.MeshPorts, b) },
		func() { setMeshPort(c, b, "10.0.9.3") },
		func() { c.MeshPorts[b].On = []netip.Prefix{netip.MustParsePrefix("10.99.0.1/32")} },
		func() { c.MeshPorts[b].On = nil },
		func() {
			c.Mesh = &network.Mesh{Overlay: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9.10/24")}}
		},
		func() { c.Mesh = nil; clear(c.MeshPorts) },
		func() { *c = *meshSample() },
	} {
		c = c.Clone()
		for k, p := range c.MeshPorts { // what was set is not changed
			q := *p
			c.MeshPorts[k] = &q
		}
		change()
		h.set(t, c)
	}
	h.Plane = h.Reopen()
	h.expect(t, c)
	h.set(t, c)
}

// testMeshPortInUse: a port that a process has is that process's, and the others
// are published. A port is the mesh's or a container's, whoever had it first.
func testMeshPortInUse(t *testing.T, h *Harness) {
	c := meshSample()
	k := network.MeshKey{Protocol: network.TCP, Port: 22000}
	release := h.Occupy(PortKeyOf(k))
	err := h.Plane.Set(t.Context(), c)
	var se *network.SetError
	if !errors.As(err, &se) || !errors.Is(se.Items[network.MeshPortItem(k)], network.ErrPortInUse) || len(se.Items) != 1 {
		t.Fatalf("error %v, not that %s is in use", err, k)
	}
	without := c.Clone()
	delete(without.MeshPorts, k)
	h.expect(t, without)
	release()
	h.set(t, c)
	host := PortKeyOf(k)
	both := c.Clone()
	both.Ports[host] = &network.Port{PortKey: host, Target: netip.MustParseAddrPort("172.17.0.2:80"), Sandbox: "s0-0"}
	if err := h.Plane.Set(t.Context(), both); !errors.As(err, &se) || !errors.Is(se.Items[network.PortItem(host)], network.ErrPortInUse) {
		t.Fatalf("error %v, not that %s is in use", err, host)
	}
	h.expect(t, c)
}

func twoKeys() network.Keys { return network.Keys{All: []network.Key{{ID: 1}, {ID: 2}}, Send: 2} }

// testEncrypted has an overlay become encrypted, which it is without keys, too: then
// nothing passes, and each Set says so.
func testEncrypted(t *testing.T, h *Harness) {
	c := Sample(1)
	h.set(t, c)
	e := c.Clone()
	o := *c.Overlays["net1"]
	o.Encrypted = true
	e.Overlays[o.ID] = &o
	for range 2 {
		err := h.Plane.Set(t.Context(), e)
		var se *network.SetError
		if !errors.As(err, &se) || len(se.Items) != 1 || !errors.Is(se.Items[network.TunnelItem(o.ID)], network.ErrNoKeys) {
			t.Fatalf("without keys: %v", err)
		}
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
