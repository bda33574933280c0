package linux

import (
	"testing"

	"github.com/google/nftables"

	"github.com/legion-swarm/legion/network"
)

// A firewall that drops what it doesn't know, before and after.
func TestForeignDrop(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	drop := nftables.ChainPolicyDrop
	forward := &nftables.Chain{
		Table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}, Name: "FORWARD", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	}
	reload := func() {
		c, err := p.connect()
		w.ok(err)
		c.AddTable(forward.Table)
		c.DelTable(forward.Table)
		c.AddTable(forward.Table)
		c.AddChain(forward)
		w.ok(c.Flush())
	}
	count := func() int {
		c, err := p.connect()
		w.ok(err)
		r, err := c.GetRules(forward.Table, forward)
		w.ok(err)
		return len(r)
	}
	reload()
	w.ok(p.Set(t.Context(), base()))
	w.serve(p.Path("a"), ":80")
	w.serve(w.outside, ":9000")
	check := func(when string) {
		t.Helper()
		if got := w.ask(w.outside, "10.99.0.1:8080"); got != "10.99.0.2" {
			t.Errorf("%s: a published port answers %q", when, got)
		}
		if got := w.ask(p.Path("a"), "10.99.0.2:9000"); got != "10.99.0.1" {
			t.Errorf("%s: the world answers %q", when, got)
		}
	}
	check("at first")
	p.stale.Store(true)
	w.ok(p.Set(t.Context(), base()))
	if count() != 2 {
		t.Errorf("%d rules for one bridge", count())
	}
	reload()
	p.stale.Store(true) // what Watch does
	w.ok(p.Set(t.Context(), base()))
	check("after a reload")
	w.ok(p.Set(t.Context(), &network.Config{}))
	if count() != 0 {
		t.Errorf("%d rules are left in another's chain", count())
	}
}

// Two daemons on one host have nothing to do with each other.
func TestTwoOwners(t *testing.T) {
	w := newWorld(t)
	a, b := w.plane(""), w.plane("b")
	one, two := base(), (&network.Config{Rules4: true, Forward: true}).Clone()
	two.Bridges["legion1"] = &network.Bridge{Device: "legion1", Addresses: pfx("172.30.0.1/16"), Masquerade: true}
	w.ok(a.Set(t.Context(), one))
	w.ok(b.Set(t.Context(), two))
	two.Bridges["legion0"] = &network.Bridge{Device: "legion0", Addresses: pfx("172.31.0.1/16")}
	if err := b.Set(t.Context(), two); err == nil {
		t.Error("one owner took the other's bridge")
	}
	w.ok(b.Set(t.Context(), &network.Config{}))
	w.serve(a.Path("a"), ":80")
	if got := w.ask(w.outside, "10.99.0.1:8080"); got != "10.99.0.2" {
		t.Errorf("after the other is gone, a published port answers %q", got)
	}
	h, err := b.Host(t.Context())
	w.ok(err)
	if d := h.Devices["legion0"]; d.Own || d.Owner != defaultOwner {
		t.Errorf("another's bridge is described as %+v", d)
	}
}
