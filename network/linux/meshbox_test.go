package linux

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Only a task without a way out is led one by the mesh, for answers and nothing else;
// also where that comes or goes.
func TestMeshBoxWay(t *testing.T) {
	w := newMeshWorld(t)
	p, c := w.planes[1], w.config[1]
	s := *c.Sandboxes["t"]
	s.Interfaces = slices.Clone(s.Interfaces)
	s.Interfaces[0].Addresses = s.Interfaces[0].Addresses[:1]
	for i, gateway := range []netip.Addr{s.Gateway4, {}, s.Gateway4} {
		next := s
		next.Gateway4 = gateway
		c.Sandboxes["t"] = &next
		w.ok(p.Set(t.Context(), c))
		var refuses, led bool
		w.in(w.task(1), func() {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			w.ok(err)
			defer h.Close()
			rules, err := rulesTo(h, netlink.FAMILY_V4, boxTable)
			w.ok(err)
			led = slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Priority == boxRuleLast })
			if !slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Priority == boxRuleFirst }) {
				t.Errorf("%d: no rule for answers", i)
			}
			n, err := nftables.New()
			w.ok(err)
			chains, err := n.ListChains()
			w.ok(err)
			refuses = slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Name == aloneChain })
			f, err := openSetting(unix.AT_FDCWD, "/proc/sys/net/ipv4/conf/eth0/rp_filter", unix.O_RDONLY)
			w.ok(err)
			defer f.close()
			if v, err := f.read(); v != "2" || err != nil {
				t.Errorf("rp_filter is %s: %v", v, err)
			}
		})
		if alone := !gateway.IsValid(); refuses != alone || led != alone {
			t.Errorf("%d: without a way out %v, but other packets refused: %v, led: %v", i, alone, refuses, led)
		}
	}
}
