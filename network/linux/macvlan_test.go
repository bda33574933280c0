package linux

import (
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/legion-swarm/legion/network"
)

// A container on a device of the host by itself is reached from outside by its own
// address, survives a daemon that is killed, and leaves nothing.
func TestMacvlan(t *testing.T) {
	w := newWorld(t)
	p := w.plane("m")
	config := func() *network.Config {
		c := (&network.Config{Rules4: true, Rules6: true}).Clone()
		c.Bridges["legion0"] = &network.Bridge{Device: "legion0", Addresses: pfx("172.17.0.1/16"), MTU: 1400}
		for id, addr := range map[string]string{"a": "10.99.0.50/24", "b": "10.99.0.51/24"} {
			c.Sandboxes[id] = &network.Sandbox{ID: id, Interfaces: []network.Interface{{
				Name: "eth0", HostName: "mac" + id, Parent: "up0", MAC: "02:42:0a:63:00:" + addr[8:10], Addresses: pfx(addr),
			}}}
		}
		return c
	}
	w.ok(p.Set(t.Context(), config()))
	w.serve(p.Path("a"), ":80")
	for from, want := range map[string]string{w.outside: "10.99.0.2", p.Path("b"): "10.99.0.51"} {
		if seen := w.ask(from, "10.99.0.50:80"); seen != want {
			t.Errorf("seen %q, want %q", seen, want)
		}
	}
	if l, err := p.Counters(t.Context(), "a"); err != nil || len(l) != 1 || l[0].RxBytes == 0 || l[0].TxBytes == 0 {
		t.Error(l, err)
	}

	// Another daemon finds them as they are, and makes the difference.
	q := w.plane("m")
	c := config()
	w.ok(q.Set(t.Context(), c))
	if seen := w.ask(w.outside, "10.99.0.50:80"); seen != "10.99.0.2" {
		t.Errorf("seen %q after a restart", seen)
	}
	two := config()
	f := two.Sandboxes["a"].Interfaces[0]
	f.HostName, f.Name, f.Mode, f.MAC, f.Addresses = "maca2", "eth1", network.MacvlanPrivate, "02:42:0a:63:00:60", pfx("10.99.0.60/24")
	two.Sandboxes["a"].Interfaces = append(two.Sandboxes["a"].Interfaces, f)
	delete(two.Sandboxes, "b")
	// A namespace may be there for a while after it has gone; its address is free.
	late, err := os.Open(q.Path("b"))
	w.ok(err)
	w.ok(q.Set(t.Context(), two))
	w.ok(q.Set(t.Context(), config()))
	w.ok(late.Close())

	// Damage is found by looking.
	w.in(q.Path("a"), func() {
		w.ok(netlink.LinkDel(w.link("eth0")))
		if _, err := netlink.LinkByName("eth1"); err == nil {
			t.Error("eth1 is still there")
		}
	})
	r := w.plane("m")
	w.ok(r.Set(t.Context(), config()))
	w.in(r.Path("a"), func() { w.link("eth0") })

	missing := config()
	missing.Sandboxes["b"].Interfaces[0].Parent, missing.Sandboxes["b"].Interfaces[0].HostName = "nosuch", "macc"
	if err := r.Set(t.Context(), missing); err == nil {
		t.Error("a device that is not there is no parent")
	}
	w.ok(r.Set(t.Context(), config()))
}
