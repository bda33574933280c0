package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// What others break is repaired without being asked, all within seconds.
func TestMeshDamage(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 3)
	for i := 1; i <= 3; i++ {
		changed := make(chan struct{}, 1)
		p, c := w.planes[i], w.config[i]
		go func() {
			done <- p.Watch(ctx, func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			})
		}()
		go func() { // what network.Networks does
			for {
				select {
				case <-changed:
					if err := p.Set(ctx, c); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	defer func() {
		cancel()
		for range 3 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Watch returned %v", err)
			}
		}
	}()
	host := func(f func()) func() { return func() { w.in(w.hosts["h1"], f) } }
	inside := func(f func()) func() { return func() { w.in(w.planes[1].overlayPath("ing"), f) } }
	for _, d := range []struct {
		what string
		do   func()
	}{
		{"nothing", func() {}},
		{"all rules flushed", host(func() { w.nft("flush ruleset") })},
		{"a rule deleted", host(func() { w.nft("flush chain inet legion-mesh forward") })},
		{"an element deleted", host(func() { w.nft("delete element inet legion-mesh ports-4 { tcp . 8001 }") })},
		{"the device removed", host(func() { w.ok(netlink.LinkDel(w.link("legion-mesh"))) })},
		{"the device down", host(func() { w.ok(netlink.LinkSetDown(w.link("legion-mesh"))) })},
		{"the routing rules removed", host(func() {
			r, err := rulesTo(w.handle(), netlink.FAMILY_V4, int(meshTables+w.planes[1].meshNumber()))
			w.ok(err)
			for i := range r {
				w.ok(netlink.RuleDel(&r[i]))
			}
		})},
		{"the route removed", host(func() {
			l, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: int(meshTables + w.planes[1].meshNumber())}, netlink.RT_FILTER_TABLE)
			w.ok(err)
			for i := range l {
				w.ok(netlink.RouteDel(&l[i]))
			}
		})},
		{"the port down", inside(func() { w.ok(netlink.LinkSetDown(w.link(meshPort))) })},
		{"the other end removed", inside(func() { w.ok(netlink.LinkDel(w.link(meshPort))) })},
		{"the port off its bridge", inside(func() { w.ok(netlink.LinkSetNoMaster(w.link(meshPort))) })},
		{"the bridge removed", inside(func() { w.ok(netlink.LinkDel(w.link(overlayBridge))) })},
	} {
		start := time.Now()
		d.do()
		for {
			bad := ""
			for _, to := range []string{"10.99.0.1:8001", "10.99.0.1:8002", "[fd99::1]:8002"} {
				if seen, _ := w.query(w.hosts["out"], "tcp", to); seen != "10.99.0.100" && seen != "fd99::100" {
					bad = to + ": " + seen
				}
			}
			if bad == "" {
				break
			}
			if time.Since(start) > 8*time.Second {
				t.Errorf("%s: not repaired: %s", d.what, bad)
				break
			}
		}
		t.Logf("%s: repaired within %v", d.what, time.Since(start).Round(time.Millisecond))
	}
}

// handle is a netlink socket in the thread's namespace, for the test.
func (w *meshWorld) handle() *netlink.Handle {
	w.t.Helper()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	w.ok(err)
	w.t.Cleanup(h.Close)
	return h
}

// Ports are answered while the daemon is away, and by the next one.
func TestMeshReopen(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	c, err := w.dial(w.hosts["out"], "tcp", "10.99.0.1:8002")
	w.ok(err)
	defer c.Close()
	u, err := w.dial(w.hosts["out"], "udp", "10.99.0.1:8000")
	w.ok(err)
	defer u.Close()
	_, first := say(u)
	w.planes[1].meshSockets.dropAll() // as the kernel does for a killed process
	w.ok(w.planes[1].keeper.Close())
	w.expect("while the daemon is away")
	p, err := New(Config{Dir: w.planes[1].dir, HostNetNS: w.hosts["h1"], Keeper: keeperCommand(), KeeperSocket: w.planes[1].keeperSocket(), Log: w.planes[1].log})
	w.ok(err)
	w.cleanPlane(p)
	w.ok(p.Set(t.Context(), w.config[1]))
	w.expect("by the next daemon")
	if seen, _ := say(c); seen != "10.99.0.100" {
		t.Errorf("a connection from before: %s", seen)
	}
	if _, name := say(u); name != first {
		t.Errorf("datagrams went to %s and now go to %s", first, name)
	}
	w.planes[1].mesh = meshState{}
	w.planes[1].stale.Store(true)
}

// A task that is gone: datagrams go to another, and connections end soon.
func TestMeshGone(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	u, err := w.dial(w.hosts["out"], "udp", "10.99.0.3:8000")
	w.ok(err)
	defer u.Close()
	_, first := say(u)
	gone, stays := 21, 22
	if first == "2" {
		gone, stays = 22, 21
	}
	c, err := w.dial(w.hosts["out"], "tcp", fmt.Sprintf("10.99.0.3:800%s", first))
	w.ok(err)
	defer c.Close()
	if _, name := say(c); name != first {
		t.Fatal(name)
	}
	n := w.config[3].Clone()
	publish(n, network.UDP, 8000, stays)
	publish(n, network.TCP, 8000, stays)
	publish(n, network.TCP, 8000+uint16(gone-20), stays)
	publish(n, network.UDP, 8000+uint16(gone-20), stays)
	w.ok(w.planes[3].Set(t.Context(), n))
	if _, name := say(u); name != first {
		t.Errorf("datagrams have left a task that is still there: %s", name)
	}
	o := *n.Overlays["ing"]
	o.Peers = nil
	for _, p := range w.config[3].Overlays["ing"].Peers {
		if p.Address != meshAddr4(gone) {
			o.Peers = append(o.Peers, p)
		}
	}
	n = n.Clone()
	n.Overlays["ing"] = &o
	w.ok(w.planes[3].Set(t.Context(), n))
	w.planes[3].forgetting.wg.Wait()
	if _, name := say(u); name == first || name != fmt.Sprint(stays-20) {
		t.Errorf("datagrams go to %s, which is gone", name)
	}
	start := time.Now()
	if seen, text := say(c); seen != "error" || time.Since(start) > time.Second {
		t.Errorf("a connection to a task that is gone: %s, %s after %v", seen, text, time.Since(start))
	}
}

// Nothing is left when the last node's part ends.
func TestMeshLeavesNothing(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	n := w.config[1].Clone()
	n.Mesh = nil
	clear(n.MeshPorts)
	w.ok(w.planes[1].Set(t.Context(), n))
	w.in(w.hosts["h1"], func() {
		if l, err := netlink.LinkByName("legion-mesh"); err == nil {
			t.Errorf("device %s is left", l.Attrs().Name)
		}
		for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			if r, err := rulesTo(w.handle(), f, int(meshTables+w.planes[1].meshNumber())); err != nil || len(r) > 0 {
				t.Errorf("routing rules are left: %v, %v", r, err)
			}
		}
		c, err := nftables.New()
		w.ok(err)
		tables, err := c.ListTables()
		w.ok(err)
		for _, x := range tables {
			if x.Name != "legion" && x.Name != "legion-tunnels" { // overlays are still there
				t.Errorf("table %s is left", x.Name)
			}
		}
		l, err := net.Listen("tcp", ":8001")
		w.ok(err)
		l.Close()
	})
	w.in(w.task(1), func() {
		c, err := nftables.New()
		w.ok(err)
		if tables, err := c.ListTables(); err != nil || len(tables) > 0 {
			t.Errorf("tables are left in the task: %v, %v", tables, err)
		}
	})
	w.set()
	w.serveTasks()
	w.expect("after it was there, and was not")
}

// Two daemons on one host have each a part in a mesh.
func TestMeshTwoOwners(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	other := w.planeOn("h1", "b")
	c := (&network.Config{Rules4: true, Rules6: true, Forward: true}).Clone()
	c.Bridges["gw1"] = &network.Bridge{Device: "gw1", Addresses: pfx("172.19.0.1/16"), Masquerade: true}
	c.Overlays["ing2"] = &network.Overlay{ID: "ing2", VNI: 5000, MTU: 1450, Addresses: pfx("10.0.0.1/24")}
	s := *w.config[1].Sandboxes["t"]
	s.Gateway4 = netip.MustParseAddr("172.19.0.1")
	s.Interfaces = slices.Clone(s.Interfaces)
	s.Interfaces[0].Overlay, s.Interfaces[1].Bridge, s.Interfaces[1].HostName, s.Interfaces[1].Addresses = "ing2", "gw1", "vethother", pfx("172.19.0.5/16")
	c.Sandboxes["t"] = &s
	c.Mesh = &network.Mesh{Overlay: "ing2", Addresses: pfx("10.0.0.11/24")}
	publish(c, network.TCP, 8051, 21).Backends = []netip.Addr{meshAddr4(21)}
	w.ok(other.Set(t.Context(), c))
	w.serveTasks()
	w.answer(other.Path("t"), "other")
	check := func(port, want string) {
		t.Helper()
		if seen, name := w.query(w.hosts["out"], "tcp", "10.99.0.1:"+port); seen != "10.99.0.100" || name != want {
			t.Errorf("%s: %s, %s", port, seen, name)
		}
	}
	check("8051", "other")
	check("8001", "1")
	err := other.Set(t.Context(), func() *network.Config { n := c.Clone(); publish(n, network.TCP, 8001, 21); return n }())
	var se *network.SetError
	if !errors.As(err, &se) || !errors.Is(err, network.ErrPortInUse) {
		t.Errorf("a port that the other has: %v", err)
	}
	w.ok(other.Set(t.Context(), &network.Config{}))
	check("8001", "1")
	check("8002", "2")
}

// A network that the mesh can't use is said to be one.
func TestMeshWithoutIPv4(t *testing.T) {
	w := newMeshWorld(t)
	c := w.config[3]
	c.Mesh = &network.Mesh{Overlay: "ing", Addresses: pfx("fd0a::d/64")}
	err := w.planes[3].Set(t.Context(), c)
	var se *network.SetError
	if !errors.As(err, &se) || len(se.Items) != 1 || se.Items[network.MeshItem] == nil {
		t.Errorf("got %v", err)
	}
}

// Connections do not notice that what a task's namespace has is written anew, as
// each daemon that starts does.
func TestMeshWrittenAnew(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var asked atomic.Int64
	for i := range 4 {
		c, err := w.dial(w.hosts["out"], "tcp", fmt.Sprintf("10.99.0.%d:8002", 1+i%3))
		w.ok(err)
		defer c.Close() //nolint:errcheck // it was used up
		clients.Go(func() {
			for ctx.Err() == nil {
				if seen, why := say(c); seen != "10.99.0.100" {
					t.Errorf("after %d questions: %s %s", asked.Load(), seen, why)
					return
				}
				asked.Add(1)
			}
		})
	}
	p := w.planes[2]
	for range 40 {
		for _, b := range p.mesh.boxes {
			w.ok(p.putMeshBox(b))
		}
	}
	cancel()
	clients.Wait()
	t.Logf("%d questions", asked.Load())
}
