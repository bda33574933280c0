package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
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

// New connections are spread; established ones stay where they are.
func TestMeshSpread(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	count := func(at string, n int) map[string]int {
		got := map[string]int{}
		for range n {
			_, name := w.query(w.hosts["out"], "tcp", at)
			got[name]++
		}
		return got
	}
	got := count("10.99.0.3:8000", 400)
	if got["1"]+got["2"] != 400 || got["1"] < 130 || got["2"] < 130 {
		t.Errorf("400 connections: %v", got)
	}
	c, err := w.dial(w.hosts["out"], "tcp", "10.99.0.3:8000")
	w.ok(err)
	defer c.Close()
	_, first := say(c)
	other := map[string]int{"1": 22, "2": 21}[first]
	for i := 1; i <= 3; i++ {
		w.config[i] = w.config[i].Clone()
		publish(w.config[i], network.TCP, 8000, other)
		publish(w.config[i], network.TCP, 8003, other)
		delete(w.config[i].MeshPorts, network.MeshKey{Protocol: network.TCP, Port: 8001})
	}
	w.set()
	if got := count("10.99.0.3:8000", 50); got[first] != 0 || len(got) != 1 {
		t.Errorf("new connections after %s was taken out: %v", first, got)
	}
	if _, name := say(c); name != first {
		t.Errorf("an established connection went from %s to %s", first, name)
	}
	if seen, _ := w.query(w.hosts["out"], "tcp", "10.99.0.1:8001"); seen != "error" {
		t.Error("a port that is not published any more answers")
	}
	if seen, _ := w.query(w.hosts["out"], "tcp", "10.99.0.1:8003"); seen != "10.99.0.100" {
		t.Errorf("a port that was published later: %s", seen)
	}
	for i := 1; i <= 3; i++ {
		w.config[i] = w.config[i].Clone()
		publish(w.config[i], network.TCP, 8000, 21, 22).Balance = network.BalanceClient
	}
	w.set()
	if got := count("10.99.0.1:8000", 20); len(got) != 1 {
		t.Errorf("one client, by its address: %v", got)
	} else if more := count("10.99.0.3:8000", 20); len(more) != 1 || fmt.Sprint(more) != fmt.Sprint(got) {
		t.Errorf("one client, by its address, by another node: %v, then %v", got, more)
	}
}

// A port without backends refuses at once.
func TestMeshRefused(t *testing.T) {
	w := newMeshWorld(t)
	for i := 1; i <= 3; i++ {
		for _, proto := range []network.Protocol{network.TCP, network.UDP} {
			publish(w.config[i], proto, 8004)
			publish(w.config[i], proto, 8005).On = pfx("10.99.0.0/24")
		}
	}
	w.set()
	for _, from := range []string{"out", "h1", "h2"} {
		for _, to := range []string{"10.99.0.1:8004", "[fd99::1]:8004", "10.99.0.1:8005"} {
			for _, proto := range []string{"tcp", "udp"} {
				start := time.Now()
				c, err := w.dial(w.hosts[from], proto, to)
				if err == nil {
					_, text := say(c)
					c.Close()
					err = errors.New(text)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("%s from %s to %s: %v after %v", proto, from, to, err, took)
				}
			}
		}
	}
}

// A port that a process of the host has stays that process's; a process that comes
// later doesn't get one that is published; and neither does another published port.
func TestMeshPortInUse(t *testing.T) {
	w := newMeshWorld(t)
	var l net.Listener
	w.in(w.hosts["h1"], func() {
		var err error
		l, err = net.Listen("tcp", "0.0.0.0:8001")
		w.ok(err)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "x mine")
			c.Close()
		}
	}()
	k := network.MeshKey{Protocol: network.TCP, Port: 8001}
	err := w.planes[1].Set(t.Context(), w.config[1])
	var se *network.SetError
	if !errors.As(err, &se) || len(se.Items) != 1 || !errors.Is(se.Items[network.MeshPortItem(k)], network.ErrPortInUse) {
		t.Fatalf("got %v", err)
	}
	w.ok(w.planes[2].Set(t.Context(), w.config[2]))
	w.serveTasks()
	if _, name := w.query(w.hosts["out"], "tcp", "10.99.0.1:8001"); name != "mine" {
		t.Errorf("the process's clients meet %s", name)
	}
	if _, name := w.query(w.hosts["out"], "tcp", "10.99.0.2:8001"); name != "1" {
		t.Errorf("by another node: %s", name)
	}
	w.ok(l.Close())
	w.set()
	w.expect("when the process has ended")
	w.in(w.hosts["h1"], func() {
		if l, err := net.Listen("tcp4", "0.0.0.0:8001"); err == nil {
			l.Close()
			t.Error("a process took a published port")
		}
	})
	c := w.config[1].Clone()
	p := published("c", "0.0.0.0:8001", "172.17.0.2:80")
	c.Ports[p.PortKey] = p
	if err := w.planes[1].Set(t.Context(), c); !errors.As(err, &se) || !errors.Is(se.Items[network.PortItem(p.PortKey)], network.ErrPortInUse) {
		t.Errorf("a container's port that is a service's: %v", err)
	}
	w.set()
	w.expect("after that")
}

// Published on some addresses, or on a device.
func TestMeshOn(t *testing.T) {
	w := newMeshWorld(t)
	w.in(w.hosts["h1"], func() {
		w.ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}))
		w.address("lan0", "10.98.0.1/24")
		w.address("up0", "10.99.0.201/24")
	})
	w.in(w.hosts["out"], func() {
		w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.98.0.0/24")), Gw: net.IPv4(10, 99, 0, 1)}))
	})
	publish(w.config[1], network.TCP, 8005, 21, 22).On = pfx("10.99.0.201/32", "fd99::/64")
	publish(w.config[1], network.TCP, 8006, 21, 22).Devices = []string{"up0"}
	publish(w.config[1], network.TCP, 8007, 21, 22).Devices = []string{"lan0"}
	w.set()
	w.serveTasks()
	h1, out := w.hosts["h1"], w.hosts["out"]
	for _, c := range []struct {
		from, to string
		answers  bool
	}{
		{out, "10.99.0.201:8005", true}, {out, "10.99.0.1:8005", false}, {out, "[fd99::1]:8005", true}, {h1, "127.0.0.1:8005", false},
		{h1, "10.99.0.201:8005", true}, {h1, "10.98.0.1:8005", false},
		{out, "10.99.0.1:8006", true}, {out, "10.99.0.201:8006", true}, {h1, "10.99.0.1:8006", true}, {h1, "10.98.0.1:8006", false},
		{out, "10.98.0.1:8007", false}, {out, "10.99.0.1:8007", false}, {h1, "10.98.0.1:8007", true}, {h1, "127.0.0.1:8007", false},
	} {
		if seen, name := w.query(c.from, "tcp", c.to); (seen != "error") != c.answers {
			t.Errorf("%s: the server saw %s (%s)", c.to, seen, name)
		}
	}
	w.in(h1, func() { // only what is published is held
		l, err := net.Listen("tcp", "10.98.0.1:8005")
		w.ok(err)
		l.Close()
	})
	publish(w.config[1], network.TCP, 8005, 21, 22).On = pfx("10.99.0.1/32")
	delete(w.config[1].MeshPorts, network.MeshKey{Protocol: network.TCP, Port: 8006})
	w.config[1] = w.config[1].Clone()
	w.set()
	if seen, _ := w.query(out, "tcp", "10.99.0.1:8005"); seen != "10.99.0.100" {
		t.Errorf("after it was published elsewhere: %s", seen)
	}
}

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
			<-done
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
		// Inside that namespace nobody listens: what is looked at once a minute.
		{"the port off its bridge", func() {
			inside(func() { w.ok(netlink.LinkSetNoMaster(w.link(meshPort))) })()
			w.planes[1].stale.Store(true)
			w.ok(w.planes[1].Set(t.Context(), w.config[1]))
		}},
		{"the bridge removed", func() {
			inside(func() { w.ok(netlink.LinkDel(w.link(overlayBridge))) })()
			w.planes[1].stale.Store(true)
			w.ok(w.planes[1].Set(t.Context(), w.config[1]))
		}},
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
	w.expect("while the daemon is away")
	p, err := New(Config{Dir: w.planes[1].dir, HostNetNS: w.hosts["h1"], Log: w.planes[1].log})
	w.ok(err)
	defer func() { w.ok(p.Close()) }()
	w.ok(p.Set(t.Context(), w.config[1]))
	w.expect("by the next daemon")
	if seen, _ := say(c); seen != "10.99.0.100" {
		t.Errorf("a connection from before: %s", seen)
	}
	if _, name := say(u); name != first {
		t.Errorf("datagrams went to %s and now go to %s", first, name)
	}
	p.meshSockets.dropAll()
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
			if x.Name != "legion" {
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

// A client may use one port of its own for two nodes, and reach one task by both:
// as a load balancer in front of the nodes does.
func TestMeshSamePort(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	for _, proto := range []string{"tcp", "udp"} {
		var conns []net.Conn
		for _, to := range []string{"10.99.0.1:8002", "10.99.0.2:8002", "10.99.0.3:8002"} {
			w.in(w.hosts["out"], func() {
				d := net.Dialer{Timeout: 2 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
					return c.Control(func(fd uintptr) {
						_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
					})
				}}
				if d.LocalAddr = (&net.TCPAddr{Port: 5555}); proto == "udp" {
					d.LocalAddr = &net.UDPAddr{Port: 5555}
				}
				c, err := d.DialContext(t.Context(), proto, to)
				if err != nil {
					t.Errorf("%s %s: %v", proto, to, err)
					return
				}
				t.Cleanup(func() { c.Close() })
				conns = append(conns, c)
			})
		}
		for range 2 {
			for _, c := range conns {
				if seen, name := say(c); seen != "10.99.0.100" || name != "2" {
					t.Errorf("%s %s: %s, %s", proto, c.RemoteAddr(), seen, name)
				}
			}
		}
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

// SCTP is tracked by the kernel here, though it has no such sockets: an INIT, made
// by hand, arrives with the client's address at the port that is meant.
func TestMeshSCTP(t *testing.T) {
	w := newMeshWorld(t)
	publish(w.config[3], network.SCTP, 8009, 22)
	if !w.planes[3].tracksSCTP() {
		err := w.planes[3].Set(t.Context(), w.config[3])
		var se *network.SetError
		if !errors.As(err, &se) || se.Items[network.MeshPortItem(network.MeshKey{Protocol: network.SCTP, Port: 8009})] == nil {
			t.Errorf("a kernel without SCTP: %v", err)
		}
		return
	}
	w.set()
	// Ports, no tag; INIT of 20 bytes: tag 1, window 65,536, a stream each way.
	init := append([]byte{0x13, 0x88, 0x1f, 0x49, 0, 0, 0, 0, 0, 0, 0, 0}, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(init[8:], crc32.Checksum(init, crc32.MakeTable(crc32.Castagnoli)))
	var server net.PacketConn
	w.in(w.task(2), func() {
		var err error
		server, err = net.ListenPacket("ip4:132", "0.0.0.0")
		w.ok(err)
	})
	defer server.Close()
	c, err := w.dial(w.hosts["out"], "ip4:132", "10.99.0.3")
	w.ok(err)
	defer c.Close()
	_, err = c.Write(init)
	w.ok(err)
	buf := make([]byte, 100)
	w.ok(server.SetReadDeadline(time.Now().Add(3 * time.Second)))
	n, from, err := server.ReadFrom(buf)
	w.ok(err)
	if from.String() != "10.99.0.100" || n != len(init) || binary.BigEndian.Uint16(buf[2:]) != 80 {
		t.Errorf("%d bytes from %s: %x", n, from, buf[:n])
	}
}
