package linux

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"

	"github.com/legion-swarm/legion/network"
)

// observeBalancers reads virtual addresses from the kernel: from the pinned maps,
// or from the sandboxes' tables.
func (w *world) observeBalancers(p *Plane, c *network.Config) {
	w.t.Helper()
	if p.balancing.ebpf.pinned() {
		d, err := openEBPF(p, p.balancing.ebpf)
		w.ok(err)
		defer d.close()
		all := map[string]bool{}
		for id := range c.Overlays {
			all[id] = true
		}
		found, err := d.found(all)
		w.ok(err)
		c.Balancers = found
	} else {
		for _, s := range c.Sandboxes {
			for i := range s.Interfaces {
				if o := c.Overlays[s.Interfaces[i].Overlay]; o != nil {
					w.observeTable(p, c, o, s.ID)
				}
			}
		}
	}
	// How backends are chosen is nowhere in a table, and with affinity only one of them is.
	for k, b := range c.Balancers {
		if want := believed(p)[k]; want != nil && b.Balance == "" && want.Balance != "" {
			b.Balance = want.Balance
			if len(b.Backends) == 1 && slices.Contains(want.Backends, b.Backends[0]) {
				b.Backends = want.Backends
			}
		}
	}
}

// observeTable reads a sandbox's tables.
func (w *world) observeTable(p *Plane, c *network.Config, o *network.Overlay, sandbox string) {
	w.t.Helper()
	ns, err := netns.GetFromPath(p.Path(sandbox))
	w.ok(err)
	defer ns.Close()
	conn, err := openFilter(int(ns))
	w.ok(err)
	for _, f := range families() {
		wr := &vipWriter{c: conn, t: &nftables.Table{Family: f, Name: vipTable}}
		elements, err := conn.GetSetElements(wr.set())
		if err != nil {
			continue // no table
		}
		sets, err := conn.GetSets(wr.t)
		w.ok(err)
		for _, e := range elements {
			vip, _ := netip.AddrFromSlice(e.Key)
			b := &network.Balancer{BalancerKey: network.BalancerKey{Network: o.ID, Address: vip}}
			for _, name := range w.mapsOf(conn, wr.t, vipChain(vip)) {
				for _, m := range sets {
					if m.Name != name || !m.IsMap {
						continue
					}
					list, err := conn.GetSetElements(m)
					w.ok(err)
					for _, x := range list {
						a, _ := netip.AddrFromSlice(x.Val)
						b.Backends = append(b.Backends, a)
					}
				}
			}
			slices.SortFunc(b.Backends, netip.Addr.Compare)
			if old := c.Balancers[b.BalancerKey]; old != nil && !old.Equal(b) {
				w.t.Errorf("sandboxes differ: %v and %v", old, b)
			}
			c.Balancers[b.BalancerKey] = b
		}
	}
}

// mapsOf names the sets that a chain's rules look in.
func (w *world) mapsOf(conn *filterConn, t *nftables.Table, chain string) (names []string) {
	w.t.Helper()
	rules, err := conn.GetRules(t, &nftables.Chain{Name: chain})
	w.ok(err)
	for _, r := range rules {
		for _, e := range r.Exprs {
			if l, ok := e.(*expr.Lookup); ok {
				names = append(names, l.SetName)
			}
		}
	}
	return names
}

func believed(p *Plane) map[network.BalancerKey]*network.Balancer {
	if c := p.believed(); c != nil {
		return c.Balancers
	}
	return nil
}
