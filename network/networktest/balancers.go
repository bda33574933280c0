package networktest

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/legion-swarm/legion/network"
)

// joined reports whether a sandbox is in a network: without one, nothing of it is
// to be seen.
func joined(c *network.Config, id string) bool {
	for _, s := range c.Sandboxes {
		for i := range s.Interfaces {
			if s.Interfaces[i].Overlay == id {
				return true
			}
		}
	}
	return false
}

// balanced is Sample(2) with services of both families, one of them without
// backends.
func balanced() *network.Config {
	c := Sample(2)
	for _, b := range []*network.Balancer{
		balancer("10.0.9.100", "10.0.9.2", "10.0.9.3", "10.0.9.200"), balancer("10.0.9.101"), balancer("fd09::100", "fd09::2", "fd09::200"),
	} {
		c.Balancers[b.BalancerKey] = b
	}
	return c
}

func balancer(vip string, backends ...string) *network.Balancer {
	b := &network.Balancer{BalancerKey: network.BalancerKey{Network: "net1", Address: netip.MustParseAddr(vip)}}
	for _, a := range backends {
		b.Backends = append(b.Backends, netip.MustParseAddr(a))
	}
	return b
}

// Balancers runs the part of the suite that depends on how virtual addresses are
// made to lead to backends.
func Balancers(t *testing.T, open func(t *testing.T) *Harness) {
	t.Run("reopen", func(t *testing.T) { testReopen(t, open(t)) })
	t.Run("clear", func(t *testing.T) { testClear(t, open(t)) })
	t.Run("narrow", func(t *testing.T) { testNarrow(t, open(t)) })
	t.Run("balancers", func(t *testing.T) { testBalancers(t, open(t)) })
}

// testBalancers has virtual addresses come, change and go; also with another data
// plane, and with one that doesn't know yet which there are.
func testBalancers(t *testing.T, h *Harness) {
	c := balanced()
	h.set(t, c)
	changed := c.Clone()
	for _, b := range []*network.Balancer{balancer("10.0.9.100", "10.0.9.3"), balancer("10.0.9.101", "10.0.9.2"), balancer("fd09::100")} {
		changed.Balancers[b.BalancerKey] = b
	}
	h.set(t, changed)
	less := changed.Clone()
	delete(less.Balancers, balancer("10.0.9.101").BalancerKey)
	delete(less.Sandboxes, "o-0")
	h.set(t, less)
	h.Plane = h.Reopen()
	h.expect(t, less)
	h.set(t, less)

	// What is not known yet stays as it is.
	h.Plane = h.Reopen()
	unknown := less.Clone()
	clear(unknown.Balancers)
	o := *unknown.Overlays["net1"]
	o.Unknown = true
	unknown.Overlays["net1"] = &o
	for range 2 {
		if err := h.Plane.Set(t.Context(), unknown); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(Visible(less).Balancers, Visible(h.Observe()).Balancers, cmp.Comparer((*network.Balancer).Equal)); d != "" {
			t.Fatalf("the balancers that are there (+) are not those that were left (-):\n%s", d)
		}
	}
	none := less.Clone()
	clear(none.Balancers)
	h.set(t, none)
}
