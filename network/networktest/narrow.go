package networktest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/legion-swarm/legion/network"
)

// narrowSample is meshSample with services that have virtual addresses.
func narrowSample() *network.Config {
	c := meshSample()
	c.Balancers = balanced().Balancers
	return c
}

// testNarrow: what a config lacks is taken back before it is set; a Set of an older
// config doesn't put it back, and what is new waits for its Set.
func testNarrow(t *testing.T, h *Harness) {
	c := narrowSample()
	set := func(c *network.Config) {
		t.Helper()
		h.Plane.Narrow(c)
		h.set(t, c)
	}
	set(c)
	a, b := network.MeshKey{Protocol: network.TCP, Port: 22000}, network.MeshKey{Protocol: network.UDP, Port: 22001}
	less := c.Clone()
	setMeshPort(less, a, "10.0.9.3", "fd09::2")
	for _, x := range []*network.Balancer{balancer("10.0.9.100", "10.0.9.3", "10.0.9.200"), balancer("fd09::100")} {
		less.Balancers[x.BalancerKey] = x
	}
	h.Plane.Narrow(less)
	h.expect(t, less)

	// A Set of a config from before, which has other things to do as well.
	older := c.Clone()
	delete(older.Sandboxes, "o-1")
	setMeshPort(older, b, "10.0.9.3")
	x := balancer("10.0.9.100", "10.0.9.2", "10.0.9.200")
	older.Balancers[x.BalancerKey] = x
	if err := h.Plane.Set(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	both := older.Clone()
	for k, p := range both.MeshPorts {
		both.MeshPorts[k] = less.NarrowMeshPort(p)
	}
	for k, p := range both.Balancers {
		both.Balancers[k] = less.NarrowBalancer(p)
	}
	h.expect(t, both)

	// What is back, and what is new, waits.
	more := c.Clone()
	setMeshPort(more, b, "10.0.9.2", "10.0.9.3")
	h.Plane.Narrow(more)
	h.expect(t, both)
	h.set(t, more)
	h.Plane.Narrow(less)
	set(more)

	// Services that are gone refuse until they have been removed.
	gone := c.Clone()
	clear(gone.MeshPorts)
	clear(gone.Balancers)
	h.Plane.Narrow(gone)
	refusing := more.Clone()
	for k := range refusing.MeshPorts {
		setMeshPort(refusing, k)
	}
	for k := range refusing.Balancers {
		refusing.Balancers[k] = &network.Balancer{BalancerKey: k}
	}
	h.expect(t, refusing)
	h.set(t, gone)
	h.Plane = h.Reopen()
	h.Plane.Narrow(less)
	set(c)
}

// testNarrowUnknown: what nobody has told yet is not taken back; what is told is.
func testNarrowUnknown(t *testing.T, h *Harness) {
	c := balanced()
	h.Plane.Narrow(c)
	h.set(t, c)
	unknown := c.Clone()
	o := *c.Overlays["net1"]
	o.Unknown = true
	unknown.Overlays["net1"] = &o
	clear(unknown.Balancers)
	less := balancer("10.0.9.100", "10.0.9.3")
	unknown.Balancers[less.BalancerKey] = less
	h.Plane.Narrow(unknown)
	want := c.Clone()
	want.Balancers[less.BalancerKey] = less
	h.expect(t, want)
	if err := h.Plane.Set(t.Context(), unknown); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Visible(want).Balancers, Visible(h.Observe()).Balancers, cmp.Comparer((*network.Balancer).Equal)); d != "" {
		t.Fatalf("the balancers that are there (+) are not those that were left (-):\n%s", d)
	}
}
