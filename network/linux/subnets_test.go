package linux

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/network"
)

// twoSubnets has the pair's network net1 have another subnet of each family. The second
// node's container moves there, and the first node gets one more there, c3.
func (p *pair) twoSubnets() {
	p.t.Helper()
	here, there := pfx("10.0.1.0/24", "fd01::/64"), pfx("10.7.0.0/28", "fd07::/64")
	moved := network.Peer{Address: netip.MustParseAddr("10.7.0.3"), Address6: netip.MustParseAddr("fd07::3"), Node: netip.MustParseAddr("10.99.0.2")}
	more := network.Peer{Address: netip.MustParseAddr("10.7.0.4"), Address6: netip.MustParseAddr("fd07::4"), Node: netip.MustParseAddr("10.99.0.1")}
	for i := range p.planes {
		c := p.configs[i].Clone()
		o := *c.Overlays["net1"]
		o.Addresses = append(slices.Clone(o.Addresses), pfx("10.7.0.1/28", "fd07::1/64")...)
		s := *c.Sandboxes["c1"]
		s.Interfaces = slices.Clone(s.Interfaces)
		f := &s.Interfaces[0]
		f.Routes = there
		put := func(id string, e network.Peer) {
			g := *f
			g.HostName = "veth-" + id // another address, so another interface
			g.Addresses = []netip.Prefix{netip.PrefixFrom(e.Address, 28), netip.PrefixFrom(e.Address6, 64)}
			g.MAC, g.Routes = e.MAC().String(), here
			c.Sandboxes[id] = &network.Sandbox{ID: id, Interfaces: []network.Interface{g}}
		}
		if c.Sandboxes["c1"] = &s; i == 0 {
			o.Peers = []network.Peer{moved}
			put("c3", more)
		} else {
			o.Peers = append(slices.Clone(o.Peers), more)
			put("c1", moved)
		}
		c.Overlays["net1"] = &o
		p.configs[i] = c
		p.ok(p.planes[i].Set(p.t.Context(), c))
	}
}

// Containers in different subnets of a network reach each other as neighbours, on one
// node and between nodes.
func TestSubnetsOfANetworkAreOneLink(t *testing.T) {
	for what, open := range map[string]func(t testing.TB) *pair{
		"plain": func(t testing.TB) *pair { return newPair(t, nil) }, "encrypted": newEncrypted,
	} {
		t.Run(what, func(t *testing.T) {
			w := open(t)
			w.twoSubnets()
			if what == "encrypted" {
				w.established()
			}
			one, two, three := w.planes[0].Path("c1"), w.planes[1].Path("c1"), w.planes[0].Path("c3")
			for _, ns := range []string{one, two, three} {
				w.serve(ns, ":80")
			}
			for _, c := range []struct{ from, to, seen string }{
				{one, "10.7.0.3:80", "10.0.1.2"},
				{one, "[fd07::3]:80", "fd01::2"},
				{two, "10.0.1.2:80", "10.7.0.3"},
				{two, "[fd01::2]:80", "fd07::3"},
				{one, "10.7.0.4:80", "10.0.1.2"},
				{three, "[fd01::2]:80", "fd07::4"},
				{two, "10.7.0.4:80", "10.7.0.3"},
				{three, "[fd07::3]:80", "fd07::4"},
			} {
				if seen := w.ask(c.from, c.to); seen != c.seen {
					t.Errorf("%s is asked by %s, not %s", c.to, seen, c.seen)
				}
			}
			w.lasting(one, two, "10.7.0.3:81")()
			// Nothing is led elsewhere: there is no way out.
			if seen := w.ask(one, "10.99.0.2:80"); seen != "error" {
				t.Errorf("the node is reached, from %s", seen)
			}
			if got, want := w.routes(one), []string{"10.0.1.0/24 on eth0", "10.7.0.0/28 on eth0", "fd01::/64 on eth0", "fd07::/64 on eth0"}; !slices.Equal(got, want) {
				t.Errorf("routes %q, want %q", got, want)
			}
			again := w.planeOn(w.host, "node0", "") // what it finds stays as it is
			if what == "plain" {
				other := w.lasting(one, two, "10.7.0.3:82")
				w.ok(again.Set(t.Context(), w.configs[0]))
				other()
			}
		})
	}
}

// routes are those of a namespace, but for addresses of links.
func (w *world) routes(ns string) (l []string) {
	w.t.Helper()
	w.in(ns, func() {
		all, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
		w.ok(err)
		for _, r := range all {
			if to := prefix(r.Dst); !to.Addr().IsLinkLocalUnicast() {
				device, err := net.InterfaceByIndex(r.LinkIndex)
				w.ok(err)
				l = append(l, fmt.Sprintf("%s on %s", to, device.Name))
			}
		}
	})
	slices.Sort(l)
	return l
}

// A sandbox that a version without further subnets has made gets the way there, as it
// stands.
func TestRoutesAreAddedToWhatIsThere(t *testing.T) {
	w := newPair(t, nil)
	w.twoSubnets()
	one, two := w.planes[0].Path("c1"), w.planes[1].Path("c1")
	w.in(one, func() {
		for _, to := range w.configs[0].Sandboxes["c1"].Interfaces[0].Routes {
			r := &netlink.Route{LinkIndex: w.link("eth0").Attrs().Index, Dst: ipNet(to)}
			if to.Addr().Is4() {
				r.Scope = netlink.SCOPE_LINK
			}
			w.ok(netlink.RouteDel(r))
		}
	})
	w.serve(two, ":80")
	if seen := w.ask(one, "10.7.0.3:80"); seen != "error" {
		t.Fatalf("it is reached without a route, from %s", seen)
	}
	again := w.planeOn(w.host, "node0", "")
	w.ok(again.Set(t.Context(), w.configs[0]))
	for to, seen := range map[string]string{"10.7.0.3:80": "10.0.1.2", "[fd07::3]:80": "fd01::2"} {
		if got := w.ask(one, to); got != seen {
			t.Errorf("%s is asked by %s, not %s", to, got, seen)
		}
	}
	// What a container has done to its interface is its own business.
	for _, change := range []func(l netlink.Link) error{netlink.LinkSetDown, func(l netlink.Link) error { return netlink.LinkSetName(l, "mine0") }} {
		w.in(one, func() { w.ok(change(w.link("eth0"))) })
		w.ok(w.planeOn(w.host, "node0", "").Set(t.Context(), w.configs[0]))
	}
}

// Clients, servers and the virtual address may all be in different subnets.
func TestVIPOfAnotherSubnet(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(2)
		here, there := pfx("10.0.9.0/24", "fd09::/64"), pfx("10.0.20.0/28", "fd14::/64")
		o := *c.Overlays[netID]
		o.Addresses = append(slices.Clone(o.Addresses), pfx("10.0.20.1/28", "fd14::1/64")...)
		c.Overlays[netID] = &o
		for i, id := range slices.Sorted(maps.Keys(c.Sandboxes)) {
			if f := &c.Sandboxes[id].Interfaces[0]; id == "server0" {
				f.Routes = there
			} else {
				a, a6 := netip.AddrFrom4([4]byte{10, 0, 20, byte(2 + i)}), netip.MustParseAddr(fmt.Sprintf("fd14::%x", 2+i))
				f.Addresses, f.Routes, f.MAC = []netip.Prefix{netip.PrefixFrom(a, 28), netip.PrefixFrom(a6, 64)}, here, network.Peer{Address: a}.MAC().String()
			}
		}
		for k, b := range c.Balancers {
			n := *b
			n.Backends = nil
			for _, id := range []string{"server0", "server1"} {
				for _, a := range c.Sandboxes[id].Interfaces[0].Addresses {
					if a.Addr().Is4() == k.Address.Is4() {
						n.Backends = append(n.Backends, a.Addr())
					}
				}
			}
			slices.SortFunc(n.Backends, netip.Addr.Compare)
			c.Balancers[k] = &n
		}
		w.ok(p.Set(t.Context(), c))
		w.names(p, 2)
		for _, from := range []string{"client", "server0", "server1"} {
			for _, to := range []string{vip4, "[" + vip6 + "]"} {
				if got := w.spread(p.Path(from), to+":80", 40); len(got) != 2 || got["server0"] == 0 || got["server1"] == 0 {
					t.Errorf("from %s to %s: connections went to %v", from, to, got)
				}
				if _, err := w.greeting(p.Path(from), to+":81"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("from %s to %s, a port on which nobody listens: %v", from, to, err)
				}
			}
		}
	})
}

// split has the third host and the second task be in other subnets of the ingress
// network: of the third host's address only the second byte is not the second's.
func (w *meshWorld) split() {
	for i := 1; i <= 3; i++ {
		c := w.config[i].Clone()
		o := *c.Overlays["ing"]
		o.Addresses = append(slices.Clone(o.Addresses), pfx("10.9.0.1/24", "fd0b::1/64")...)
		o.Peers = slices.Clone(o.Peers)
		for j := range o.Peers {
			q := &o.Peers[j]
			q.Address, q.Address6 = movedAddr(q.Address), movedAddr(q.Address6)
		}
		slices.SortFunc(o.Peers, network.Peer.Compare)
		c.Overlays["ing"] = &o
		c.Mesh = &network.Mesh{Overlay: "ing", Addresses: moveAll(c.Mesh.Addresses)}
		c.Mesh.Routes = others(c.Mesh.Addresses)
		for k, m := range c.MeshPorts {
			n := *m
			n.Backends = nil
			for _, a := range m.Backends {
				n.Backends = append(n.Backends, movedAddr(a))
			}
			slices.SortFunc(n.Backends, netip.Addr.Compare)
			c.MeshPorts[k] = &n
		}
		if s := c.Sandboxes["t"]; s != nil {
			n := *s
			n.Interfaces = slices.Clone(s.Interfaces)
			f := &n.Interfaces[0]
			f.Addresses = moveAll(f.Addresses)
			f.MAC, f.Routes = network.Peer{Address: f.Addresses[0].Addr()}.MAC().String(), others(f.Addresses)
			c.Sandboxes["t"] = &n
		}
		w.config[i] = c
	}
	w.moved = true
}

// movedAddr is where an address of a mesh's world is in one that is split.
func movedAddr(a netip.Addr) netip.Addr {
	for from, to := range map[string]string{
		meshAddr4(13).String(): "10.9.0.12", meshAddr4(22).String(): "10.9.0.22",
		meshAddr6(13).String(): "fd0b::d", meshAddr6(22).String(): "fd0b::16",
	} {
		if a.String() == from {
			return netip.MustParseAddr(to)
		}
	}
	return a
}

func moveAll(l []netip.Prefix) []netip.Prefix {
	l = slices.Clone(l)
	for i := range l {
		l[i] = netip.PrefixFrom(movedAddr(l[i].Addr()), l[i].Bits())
	}
	return l
}

// others are the subnets that addresses are not in.
func others(l []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(pfx("10.0.0.0/24", "10.9.0.0/24", "fd0a::/64", "fd0b::/64"), func(p netip.Prefix) bool {
		return slices.ContainsFunc(l, func(a netip.Prefix) bool { return p.Contains(a.Addr()) })
	})
}

// meant is what a case says of an address, in a world that is split.
func (w *meshWorld) meant(s string) string {
	if !w.moved {
		return s
	}
	if at, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(movedAddr(at.Addr()), at.Port()).String()
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return movedAddr(a).String()
	}
	return s
}

// All that holds for published ports holds where the ingress network has several
// subnets.
func TestMeshOfSeveralSubnets(t *testing.T) {
	for _, alone := range []bool{false, true} {
		t.Run(fmt.Sprintf("alone %v", alone), func(t *testing.T) {
			w := meshWorldOf(t, alone)
			w.split()
			w.set()
			w.serveTasks()
			w.cases(t)
			t.Run("same port", func(t *testing.T) { w.samePort(t) })
		})
	}
}

// A network that loses a subnet, as one that is made anew, leaves no route behind.
func TestMeshRoutesGo(t *testing.T) {
	w := newMeshWorld(t)
	one := *w.config[3]
	w.split()
	w.ok(w.planes[3].Set(t.Context(), w.config[3]))
	table := func() (l []string) {
		w.in(w.hosts["h3"], func() {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			w.ok(err)
			defer h.Close()
			number := int(meshTables + w.planes[3].meshNumber())
			routes, err := whole(func() ([]netlink.Route, error) {
				return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: number}, netlink.RT_FILTER_TABLE)
			})
			w.ok(err)
			for _, r := range routes {
				l = append(l, prefix(r.Dst).String())
			}
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				rules, err := rulesTo(h, family, number)
				w.ok(err)
				for _, r := range rules {
					l = append(l, fmt.Sprintf("%d to %s", r.Priority, prefix(r.Dst)))
				}
			}
		})
		slices.Sort(l)
		return l
	}
	const both = "10.0.0.0/24 10.9.0.0/24 33000 to 10.0.0.0/24 33000 to 10.9.0.0/24 33000 to fd0a::/64 33000 to fd0b::/64 64 to invalid Prefix 64 to invalid Prefix fd0a::/64 fd0b::/64"
	const first = "10.0.0.0/24 33000 to 10.0.0.0/24 33000 to fd0a::/64 64 to invalid Prefix 64 to invalid Prefix fd0a::/64"
	if got := strings.Join(table(), " "); got != both {
		t.Errorf("%s, want %s", got, both)
	}
	w.ok(w.planes[3].Set(t.Context(), &one))
	if got := strings.Join(table(), " "); got != first {
		t.Errorf("%s, want %s", got, first)
	}
	w.ok(w.planes[3].Set(t.Context(), w.config[3]))
	if got := strings.Join(table(), " "); got != both {
		t.Errorf("%s, want %s", got, both)
	}
}

// Endpoints of all subnets have zones of their own, as long as there are enough.
func TestZonesFor(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		subnets, left := pfx("fd00::/64"), 1<<16
		for i := range rapid.IntRange(1, 20).Draw(r, "subnets") {
			bits := rapid.IntRange(12, 30).Draw(r, "bits")
			if left -= 1 << min(16, 32-bits); left < 0 {
				break
			}
			a := rapid.Uint32().Draw(r, "address")
			subnets = append(subnets, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i), byte(a >> 16), byte(a >> 8), byte(a)}), bits).Masked())
		}
		taken := map[uint16]netip.Addr{}
		zones := zonesFor(subnets)
		if len(zones) != len(subnets)-1 {
			r.Fatalf("%d zones for %v", len(zones), subnets)
		}
		for i, s := range subnets[1:] {
			for range 50 {
				b := s.Addr().As4()
				low := rapid.Uint16().Draw(r, "host") & uint16(1<<min(16, 32-s.Bits())-1)
				b[2], b[3] = b[2]|byte(low>>8), b[3]|byte(low)
				a := netip.AddrFrom4(b)
				zone := (uint16(b[2])<<8|uint16(b[3]))&zones[i].mask ^ zones[i].first
				if other, is := taken[zone]; is && other != a {
					r.Fatalf("%s and %s of %v have zone %d", other, a, subnets, zone)
				}
				taken[zone] = a
			}
		}
	})
}
