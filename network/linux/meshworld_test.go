package linux

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/legion-swarm/legion/network"
)

// meshWorld is three hosts and an outside, 10.99.0.1 to .3 and .100, on one wire,
// which routes nothing. Each has a bridge with a container, and one by which tasks
// leave; the subnets of these are the same on all hosts. Hosts 1 and 2 have a task
// each. Published: 8001 leads to host 1's task, 8002 to host 2's, 8000 to both.
type meshWorld struct {
	*world
	hosts  map[string]string // paths
	planes [4]*Plane
	config [4]*network.Config
	moved  bool // see split
}

func newMeshWorld(t testing.TB) *meshWorld {
	t.Helper()
	return meshWorldOf(t, false)
}

// meshWorldOf makes one in which hosts have a default route, or not.
func meshWorldOf(t testing.TB, alone bool) *meshWorld {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := &meshWorld{world: &world{t: t, dir: runDir(t)}, hosts: map[string]string{}}
	wire := w.namespace("wire")
	w.in(wire, func() {
		w.ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
		w.ok(netlink.LinkSetUp(w.link("br0")))
		for _, f := range []string{"iptables", "ip6tables"} { // a wire filters nothing
			_ = writeSysctl("/proc/sys/net/bridge/bridge-nf-call-"+f, "0")
		}
	})
	for i, n := range []string{"h1", "h2", "h3", "out"} {
		if n == "out" {
			i = 99
		}
		w.hosts[n] = w.namespace(n)
		host, err := os.Open(w.hosts[n])
		w.ok(err)
		defer host.Close()
		w.in(wire, func() {
			a := netlink.NewLinkAttrs()
			a.Name, a.MasterIndex, a.MTU = n, w.link("br0").Attrs().Index, 1500
			w.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "up0", PeerNamespace: netlink.NsFd(host.Fd())}))
			w.ok(netlink.LinkSetUp(w.link(n)))
		})
		w.in(w.hosts[n], func() {
			w.ok(netlink.LinkSetUp(w.link("lo")))
			w.address("up0", fmt.Sprintf("10.99.0.%d/24", i+1), fmt.Sprintf("fd99::%d/64", i+1))
			if n != "out" && !alone {
				w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(10, 99, 0, 100)}))
				w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("::/0")), Gw: net.ParseIP("fd99::100")}))
			}
		})
	}
	for i := 1; i <= 3; i++ {
		w.planes[i], w.config[i] = w.planeOn(fmt.Sprint("h", i), ""), meshConfig(i)
	}
	return w
}

// planeOn returns a data plane on a host.
func (w *meshWorld) planeOn(host, owner string) *Plane {
	w.t.Helper()
	dir := filepath.Join(w.dir, "netns-"+host+owner)
	p, err := New(Config{
		Dir: dir, Owner: owner, HostNetNS: w.hosts[host], Keeper: keeperCommand(), KeeperSocket: dir + ".keeper", Log: slog.New(slog.DiscardHandler),
	})
	w.ok(err)
	w.cleanPlane(p)
	return p
}

// meshConfig is host i's.
func meshConfig(i int) *network.Config {
	c := (&network.Config{Rules4: true, Rules6: true, Forward: true, UserProxy: true}).Clone()
	c.Underlay = network.Underlay{Local: netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", i)), Port: 4789}
	c.Bridges["legion0"] = &network.Bridge{Device: "legion0", Addresses: pfx("172.17.0.1/16", "fd17::1/64"), Masquerade: true}
	c.Bridges["gw0"] = &network.Bridge{Device: "gw0", Addresses: pfx("172.18.0.1/16"), Masquerade: true, Isolated: true}
	c.Sandboxes["c"] = box("c", 2, "legion0")
	o := &network.Overlay{ID: "ing", VNI: 4096, MTU: 1450, Addresses: pfx("10.0.0.1/24", "fd0a::1/64")}
	c.Overlays["ing"] = o
	for j := 1; j <= 3; j++ {
		if j != i {
			node := netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", j))
			o.Peers = append(o.Peers, network.Peer{Address: meshAddr4(10 + j), Address6: meshAddr6(10 + j), Node: node})
			if j != 3 {
				o.Peers = append(o.Peers, network.Peer{Address: meshAddr4(20 + j), Address6: meshAddr6(20 + j), Node: node})
			}
		}
	}
	slices.SortFunc(o.Peers, network.Peer.Compare)
	if i != 3 {
		c.Sandboxes["t"] = &network.Sandbox{ID: "t", Gateway4: netip.MustParseAddr("172.18.0.1"), Interfaces: []network.Interface{
			{Name: "eth0", HostName: "vetht0", Overlay: "ing", MTU: 1450, MAC: fmt.Sprintf("02:42:0a:00:00:%02x", 20+i),
				Addresses: []netip.Prefix{netip.PrefixFrom(meshAddr4(20+i), 24), netip.PrefixFrom(meshAddr6(20+i), 64)}},
			{Name: "eth1", HostName: "vetht1", Bridge: "gw0", MAC: "02:42:ac:12:00:05", Addresses: pfx("172.18.0.5/16")},
		}}
	}
	c.Mesh = &network.Mesh{Overlay: "ing", Addresses: []netip.Prefix{netip.PrefixFrom(meshAddr4(10+i), 24), netip.PrefixFrom(meshAddr6(10+i), 64)}}
	for _, proto := range []network.Protocol{network.TCP, network.UDP} {
		publish(c, proto, 8001, 21)
		publish(c, proto, 8002, 22)
		publish(c, proto, 8000, 21, 22)
	}
	return c
}

// publish has a port of the mesh lead to port 80 of tasks, by number.
func publish(c *network.Config, proto network.Protocol, port uint16, tasks ...int) *network.MeshPort {
	m := &network.MeshPort{MeshKey: network.MeshKey{Protocol: proto, Port: port}, Target: 80}
	for _, n := range tasks {
		m.Backends = append(m.Backends, meshAddr4(n))
	}
	for _, n := range tasks {
		m.Backends = append(m.Backends, meshAddr6(n))
	}
	c.MeshPorts[m.MeshKey] = m
	return m
}

func meshAddr4(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }
func meshAddr6(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd0a::%x", n)) }

// set makes all hosts what their configs say.
func (w *meshWorld) set() {
	w.t.Helper()
	for i := 1; i <= 3; i++ {
		if err := w.planes[i].Set(w.t.Context(), w.config[i]); err != nil {
			w.t.Fatalf("host %d: %v", i, err)
		}
	}
}

// task is the path of host i's task.
func (w *meshWorld) task(i int) string { return w.planes[i].Path("t") }

// serveTasks has both tasks answer TCP and UDP, at port 80, with the client's
// address and their number.
func (w *meshWorld) serveTasks() {
	w.t.Helper()
	for i := 1; i <= 2; i++ {
		w.answer(w.task(i), fmt.Sprint(i))
	}
}

// answer has a server in a namespace say who it sees, and its own name, over TCP
// and UDP at port 80.
func (w *meshWorld) answer(ns, name string) {
	w.t.Helper()
	w.in(ns, func() {
		l, err := net.Listen("tcp", ":80")
		w.ok(err)
		u, err := net.ListenPacket("udp", ":80")
		w.ok(err)
		w.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					buf := make([]byte, 16)
					for {
						n, err := c.Read(buf)
						if err != nil || n == 0 {
							return
						}
						_, _ = fmt.Fprintf(c, "%s %s", seenAddr(c.RemoteAddr()), name)
					}
				}()
			}
		}()
		go func() {
			buf := make([]byte, 2000)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s", seenAddr(from), name), from)
			}
		}()
	})
}

func seenAddr(a net.Addr) string {
	host, _, _ := net.SplitHostPort(a.String())
	return host
}

// dial connects from a namespace.
func (w *meshWorld) dial(ns, proto, addr string) (c net.Conn, err error) {
	w.t.Helper()
	w.in(ns, func() { c, err = net.DialTimeout(proto, addr, 2*time.Second) })
	return c, err
}

// say sends a word on a connection and returns the answer: the address that the
// server sees, and its name.
func say(c net.Conn) (seen, name string) {
	buf := make([]byte, 200)
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		return "error", err.Error()
	}
	n, err := c.Read(buf)
	if err != nil {
		return "error", err.Error()
	}
	seen, name, _ = strings.Cut(string(buf[:n]), " ")
	return seen, name
}

// query asks a published port once.
func (w *meshWorld) query(ns, proto, addr string) (seen, name string) {
	w.t.Helper()
	c, err := w.dial(ns, proto, addr)
	if err != nil {
		return "error", err.Error()
	}
	defer c.Close()
	return say(c)
}
