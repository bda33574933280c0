package linux

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// expect checks that a port answers from outside, with the client's address.
func (w *meshWorld) expect(when string) {
	w.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		for _, to := range []string{"10.99.0.1:8001", "10.99.0.1:8002", "10.99.0.3:8001"} {
			if seen, name := w.query(w.hosts["out"], proto, to); seen != "10.99.0.100" {
				w.t.Errorf("%s: %s %s: the server saw %s (%s)", when, proto, to, seen, name)
			}
		}
	}
}

// dropForward gives a host a firewall like that of another engine: what it does
// not know it does not forward.
func (w *meshWorld) dropForward(i int, family nftables.TableFamily) {
	w.t.Helper()
	c, err := w.planes[i].connect()
	w.ok(err)
	drop := nftables.ChainPolicyDrop
	t := &nftables.Table{Family: family, Name: "filter"}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	c.AddChain(&nftables.Chain{
		Table: t, Name: "FORWARD", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	w.ok(c.Flush())
}

// Another's firewall that forwards nothing, and a host on which what bridges
// carry passes the packet filter.
func TestMeshForeign(t *testing.T) {
	w := newMeshWorld(t)
	for i := 1; i <= 3; i++ {
		w.dropForward(i, nftables.TableFamilyIPv4)
		w.dropForward(i, nftables.TableFamilyIPv6)
		w.in(w.hosts[fmt.Sprint("h", i)], func() {
			for _, f := range []string{"iptables", "ip6tables", "arptables"} {
				_ = writeSysctl("/proc/sys/net/bridge/bridge-nf-call-"+f, "1")
			}
			w.ok(writeSysctl("/proc/sys/net/ipv4/conf/all/rp_filter", "1"))
			w.ok(writeSysctl("/proc/sys/net/ipv4/conf/default/rp_filter", "1"))
		})
	}
	w.set()
	w.serveTasks()
	w.cases(t)
	for i := 1; i <= 3; i++ { // reloaded
		w.dropForward(i, nftables.TableFamilyINet)
		w.planes[i].stale.Store(true) // what Watch does
	}
	w.set()
	w.expect("after a reload")
}

// A firewall that asks by which way a packet should have come.
func TestMeshReversePath(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	for i := 1; i <= 3; i++ {
		w.in(w.hosts[fmt.Sprint("h", i)], func() {
			w.nft(`table inet firewall { chain c { type filter hook prerouting priority -140; policy accept;
				iif != lo fib saddr . mark . iif oif missing drop; }; }`)
		})
	}
	w.expect("with a reverse path filter")
	if seen, name := w.query(w.hosts["out"], "tcp", "[fd99::3]:8001"); seen != "fd99::100" {
		t.Errorf("IPv6: %s (%s)", seen, name)
	}
}

// nft runs the nft program in the thread's namespace.
func (w *meshWorld) nft(script string) {
	w.t.Helper()
	path, err := exec.LookPath("nft")
	w.ok(err)
	if out, err := exec.CommandContext(w.t.Context(), path, script).CombinedOutput(); err != nil {
		w.t.Fatalf("nft: %v: %s", err, out)
	}
}

// The host's owner lists the rules, ours among them: the nft program aborts on what it
// does not understand, and then shows none.
func TestRulesCanBeListed(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.in(w.hosts["h1"], func() {
		w.nft("list ruleset")
		w.nft("list table inet legion-mesh")
		w.nft("list table inet legion-tunnels")
	})
}

// The host's own network has the subnet that the ingress network has.
func TestMeshOverlap(t *testing.T) {
	w := newMeshWorld(t)
	w.in(w.hosts["out"], func() { w.address("up0", "10.0.0.77/24") })
	for i := 1; i <= 3; i++ {
		w.in(w.hosts[fmt.Sprint("h", i)], func() { w.address("up0", fmt.Sprintf("10.0.0.20%d/24", i)) })
	}
	w.set()
	w.serveTasks()
	w.expect("with overlapping subnets")
	for _, proto := range []string{"tcp", "udp"} {
		for _, to := range []string{"10.0.0.201:8001", "10.0.0.201:8002", "10.0.0.203:8001"} {
			if seen, name := w.query(w.hosts["out"], proto, to); seen != "10.0.0.77" {
				t.Errorf("%s %s: the server saw %s (%s)", proto, to, seen, name)
			}
		}
	}
	w.answer(w.hosts["out"], "out")
	if seen, name := w.query(w.hosts["h1"], "tcp", "10.0.0.77:80"); seen != "10.0.0.201" || name != "out" {
		t.Errorf("the host reaches its neighbour: %s, %s", seen, name)
	}
}

// What was not published is not reached, neither from outside nor, by the ingress
// network, from a task whose own rules are gone.
func TestMeshClosed(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	w.answer(w.hosts["h1"], "host")
	w.in(w.hosts["out"], func() {
		for _, p := range []string{"10.0.0.0/24", "172.18.0.0/16", "169.254.1.2/32"} {
			w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(p)), Gw: net.IPv4(10, 99, 0, 1)}))
		}
		w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("fd0a::/64")), Gw: net.ParseIP("fd99::1")}))
	})
	w.in(w.task(1), func() {
		w.nft("delete table inet legion-mesh; delete table netdev legion-mesh")
		l := w.link("eth0")
		mac, err := net.ParseMAC("02:42:0a:00:00:0b")
		w.ok(err)
		w.ok(netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(10, 0, 0, 11), HardwareAddr: mac}))
		for _, p := range []string{"10.99.0.1/32", "10.99.0.100/32"} {
			w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(p)), Gw: net.IPv4(10, 0, 0, 11)}))
		}
	})
	w.answer(w.hosts["out"], "out")
	var wg sync.WaitGroup
	for _, c := range []struct{ from, to string }{
		{w.hosts["out"], "10.0.0.21:80"}, {w.hosts["out"], "10.0.0.22:80"}, {w.hosts["out"], "172.18.0.5:80"}, {w.hosts["out"], "[fd0a::15]:80"},
		{w.hosts["h1"], "10.0.0.21:80"}, {w.planes[1].Path("c"), "10.0.0.21:80"},
		{w.task(1), "10.99.0.1:80"}, {w.task(1), "10.99.0.100:80"}, {w.task(1), "10.99.0.1:8002"},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			wg.Go(func() {
				if seen, name := w.query(c.from, proto, c.to); seen != "error" {
					t.Errorf("%s %s is reached: %s sees %s", proto, c.to, name, seen)
				}
			})
		}
	}
	wg.Wait()
}
