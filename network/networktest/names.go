package networktest

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/dns"
)

// Answer is what a sandbox's resolver says of a name.
type Answer struct {
	// Served is false where nobody answers.
	Served bool
	// Exists is false for NXDOMAIN.
	Exists    bool
	Addresses []netip.Addr // sorted
}

func (a Answer) equal(b Answer) bool {
	return a.Served == b.Served && a.Exists == b.Exists && slices.Equal(a.Addresses, b.Addresses)
}

// Ask is Harness.Ask of the fake.
func (f *Fake) Ask(sandbox, name string, v6 bool) Answer {
	there := f.There()
	return expected(there, sandbox, name, v6)
}

// expected is what a config says that a sandbox is answered.
func expected(c *network.Config, sandbox, name string, v6 bool) Answer {
	s := c.Sandboxes[sandbox]
	if s == nil || s.Resolver == nil {
		return Answer{}
	}
	r := dns.NewNames(c.Zones, nil).Lookup(s.Resolver.Zones, []byte(name), dns.TypeA)
	a := Answer{Served: true, Exists: r.Exists}
	for _, x := range r.Addresses {
		if x.Is6() == v6 {
			a.Addresses = append(a.Addresses, x)
		}
	}
	slices.SortFunc(a.Addresses, netip.Addr.Compare)
	return a
}

// randomNames gives sandboxes resolvers.
func randomNames(c *network.Config, draw func(string) bool) {
	for id, s := range c.Sandboxes {
		if !draw("names in " + id) {
			continue
		}
		n := *s
		n.Resolver = &network.Resolver{Zones: []string{"net1"}}
		if draw("no zones in " + id) {
			n.Resolver.Zones = nil
		}
		c.Sandboxes[id] = &n
	}
}

// expectNames asks every sandbox for some names.
func (h *Harness) expectNames(t interface {
	Helper()
	Errorf(format string, args ...any)
}, c *network.Config) {
	t.Helper()
	for id := range c.Sandboxes {
		for _, name := range []string{"web", "tasks.web", "web.backend", "nothing.backend", "nothing"} {
			for _, v6 := range []bool{false, true} {
				if got, want := h.Ask(id, name, v6), expected(c, id, name, v6); !got.equal(want) {
					t.Errorf("%s, IPv6 %v, in sandbox %s: %+v, want %+v", name, v6, id, got, want)
				}
			}
		}
	}
}

// testNames: answers are those of the last config as soon as Set has returned.
func testNames(t *testing.T, h *Harness) {
	a, a6 := netip.MustParseAddr("10.0.9.2"), netip.MustParseAddr("fd09::2")
	c := Sample(1)
	for id, s := range c.Sandboxes {
		n := *s
		n.Resolver = &network.Resolver{Zones: []string{"net2", "net1"}}
		c.Sandboxes[id] = &n
	}
	zone := func(id, name string, names map[string][]netip.Addr) {
		c.Zones[id] = &network.Zone{ID: id, Name: name, Names: names}
	}
	step := func() {
		t.Helper()
		h.set(t, c)
		h.expectNames(t, c)
		c = c.Clone()
	}
	step()
	zone("net1", "backend", map[string][]netip.Addr{"web": {a, a6}, "tasks.web": nil})
	step()
	zone("net1", "backend", map[string][]netip.Addr{"web": {a6}})
	step()
	zone("net2", "front", map[string][]netip.Addr{"web": {netip.MustParseAddr("10.0.8.8")}})
	step()
	zone("net2", "backend", nil)
	step()
	s := *c.Sandboxes["s0-0"]
	s.Resolver = &network.Resolver{Zones: []string{"net1"}}
	c.Sandboxes["s0-0"] = &s
	step()
	without := s
	without.Resolver = nil
	c.Sandboxes["s0-0"] = &without
	step()
	c.Sandboxes["s0-0"] = &s
	delete(c.Zones, "net1")
	step()
}

// testNamesReopen: a new data plane serves the sandboxes that it finds, which
// stay what they are.
func testNamesReopen(t *testing.T, h *Harness) {
	c := Sample(2)
	for id, s := range c.Sandboxes {
		n := *s
		n.Resolver = &network.Resolver{Zones: []string{"net1"}}
		c.Sandboxes[id] = &n
	}
	c.Zones["net1"] = &network.Zone{ID: "net1", Name: "backend", Names: map[string][]netip.Addr{"web": {netip.MustParseAddr("10.0.9.2")}}}
	h.set(t, c)
	before := h.Identity("s0-0")
	h.Plane = h.Reopen()
	h.set(t, c)
	h.expectNames(t, c)
	if h.Identity("s0-0") != before {
		t.Error("a sandbox was made anew")
	}
}
