package linux

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/linux/keeper"
)

// How connections are spread, and whom virtual addresses are for.

// New connections are spread evenly: the sum of squared deviations is what chance
// would give, but once in a million runs (chi-squared with 9 degrees of freedom).
func TestVIPSpread(t *testing.T) {
	const servers, connections, limit = 10, 2000, 45.1
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		w.ok(p.Set(t.Context(), w.service(servers)))
		w.names(p, servers)
		for _, to := range []string{vip4 + ":80", "[" + vip6 + "]:80"} {
			got := w.spread(p.Path("client"), to, connections)
			const each = float64(connections) / servers
			sum := 0.0
			for i := range servers {
				d := float64(got[fmt.Sprintf("server%d", i)]) - each
				sum += d * d / each
			}
			if sum > limit || len(got) != servers {
				t.Errorf("%s: chi-squared is %.1f: %v", to, sum, got)
			}
		}
	})
}

func backendsOf(c *network.Config, n ...int) []netip.Addr {
	var l []netip.Addr
	for _, i := range n {
		l = append(l, c.Sandboxes[fmt.Sprintf("server%d", i)].Interfaces[0].Addresses[0].Addr())
	}
	return l
}

// With affinity each client has one backend, as long as that serves.
func TestVIPClient(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(5)
		lead(c, network.BalanceClient, backendsOf(c, 0, 1, 2, 3)...)
		w.ok(p.Set(t.Context(), c))
		w.names(p, 5)
		clients := []string{"client", "server0", "server1", "server2", "server3", "server4"}
		ask := func() map[string]string {
			m := map[string]string{}
			for _, id := range clients {
				for range 8 {
					name, err := w.greeting(p.Path(id), vip4+":80")
					if err != nil || m[id] != "" && m[id] != name {
						t.Errorf("%s was answered by %s and by %s (%v)", id, m[id], name, err)
					}
					m[id] = name
				}
			}
			return m
		}
		before := ask()
		used := map[string]bool{}
		for _, s := range before {
			used[s] = true
		}
		if len(used) < 2 {
			t.Errorf("all clients have %v", before)
		}
		number, err := strconv.Atoi(strings.TrimPrefix(before["client"], "server"))
		w.ok(err)
		var others []int
		for i := range 5 {
			if i != number {
				others = append(others, i)
			}
		}
		less := c.Clone()
		lead(less, network.BalanceClient, backendsOf(c, others...)...) // one left, one is new
		w.ok(p.Set(t.Context(), less))
		after := ask()
		for _, id := range clients {
			if gone := before[id] == before["client"]; !gone && after[id] != before[id] || gone && after[id] == before[id] {
				t.Errorf("%s had %s, has %s; %s left", id, before[id], after[id], before["client"])
			}
		}
		w.ok(p.Set(t.Context(), c)) // the one that left is back, and takes nobody away but from the one that is gone
		for id, s := range ask() {
			if s != after[id] && after[id] != "server4" {
				t.Errorf("%s had %s, has %s", id, after[id], s)
			}
		}
	})
}

// With least connections new ones go where there are few.
func TestVIPLeast(t *testing.T) {
	w := newWorld(t)
	p := requireEBPF(w)
	c := w.service(3)
	lead(c, network.BalanceLeast, backendsOf(c, 0, 1, 2)...)
	w.ok(p.Set(t.Context(), c))
	w.names(p, 3)
	held := map[string][]net.Conn{}
	open := func(n int) {
		w.in(p.Path("client"), func() {
			for range n {
				conn, err := net.Dial("tcp", vip4+":80")
				w.ok(err)
				name, err := bufio.NewReader(conn).ReadString('\n')
				w.ok(err)
				name = strings.TrimSpace(name)
				held[name] = append(held[name], conn)
			}
		})
	}
	counted := func() (counts map[string]int64) {
		all, err := readMap[memberKey, int64](w.ebpf(p).maps["members"])
		w.ok(err)
		counts = map[string]int64{}
		for k, n := range all {
			if a := netip.AddrFrom16(k.Backend).Unmap(); a.Is4() {
				counts[fmt.Sprintf("server%d", a.As4()[3]-3)] = n
			}
		}
		return counts
	}
	open(90)
	for i := range 3 {
		id := fmt.Sprintf("server%d", i)
		if n := len(held[id]); n < 25 || n > 35 || counted()[id] != int64(n) {
			t.Errorf("%s has %d of 90 connections, %d are counted", id, n, counted()[id])
		}
	}
	for _, conn := range held["server1"] {
		conn.Close()
	}
	if n := counted()["server1"]; n != 0 {
		t.Errorf("%d connections are counted when all are closed", n)
	}
	held["server1"] = nil
	open(40)
	if n := len(held["server1"]); n < 15 {
		t.Errorf("the server without connections has been given %d of 40", n)
	}
	// A connection that fails, and a backend that leaves with connections, leave the count right.
	for range 5 {
		if _, err := w.greeting(p.Path("client"), vip4+":81"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connected to nothing: %v", err)
		}
	}
	less := c.Clone()
	lead(less, network.BalanceLeast, backendsOf(c, 0, 1)...)
	w.ok(p.Set(t.Context(), less))
	w.ok(p.Set(t.Context(), c))
	for _, l := range held {
		for _, conn := range l {
			conn.Close()
		}
	}
	for id, n := range counted() {
		if n != 0 {
			t.Errorf("%d connections of %s are counted when all are closed", n, id)
		}
	}
	notes, err := readMap[uint64, [48]byte](w.ebpf(p).maps["peers"])
	w.ok(err)
	if len(notes) > 0 {
		t.Errorf("notes of %d connections are left when all are closed", len(notes))
	}
}

// An address is only that of its own network, for the sandboxes in it.
func TestVIPOfNetworks(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(2)
		lead(c, "", backendsOf(c, 0)...)
		// Another network, with the same addresses: nothing of either is in the other.
		c.Overlays["net2"] = &network.Overlay{ID: "net2", VNI: 4097, MTU: 1350, Addresses: pfx("10.0.9.1/24")}
		c.Overlays["net3"] = &network.Overlay{ID: "net3", VNI: 4098, MTU: 1350, Addresses: pfx("10.0.8.1/24")}
		in := func(host, overlay, address string, n int) network.Interface {
			return network.Interface{
				Name: fmt.Sprintf("eth%d", n), HostName: host, Overlay: overlay, MTU: 1350, MAC: fmt.Sprintf("02:42:0b:00:00:%02x", n), Addresses: pfx(address),
			}
		}
		c.Sandboxes["other"] = &network.Sandbox{ID: "other", Interfaces: []network.Interface{in("vethother", "net2", "10.0.9.4/24", 0)}}
		c.Sandboxes["both"] = &network.Sandbox{ID: "both", Interfaces: []network.Interface{in("vethboth0", "net3", "10.0.8.7/24", 0)}}
		k2 := network.BalancerKey{Network: "net2", Address: netip.MustParseAddr(vip4)}
		c.Balancers[k2] = &network.Balancer{BalancerKey: k2, Backends: []netip.Addr{netip.MustParseAddr("10.0.9.4")}}
		k3 := network.BalancerKey{Network: "net3", Address: netip.MustParseAddr("10.0.8.100")}
		c.Balancers[k3] = &network.Balancer{BalancerKey: k3, Backends: []netip.Addr{netip.MustParseAddr("10.0.8.7")}}
		w.ok(p.Set(t.Context(), c))
		w.names(p, 2)
		w.name(p.Path("other"), "other", 80)
		w.name(p.Path("both"), "both", 80)
		expect := func(from, to, want string) {
			t.Helper()
			got, err := w.greeting(p.Path(from), to+":80")
			if err != nil {
				got = "error"
			}
			if got != want {
				t.Errorf("%s to %s: %q, not %q (%v)", from, to, got, want, err)
			}
		}
		expect("client", vip4, "server0")
		expect("other", vip4, "other")
		expect("both", "10.0.8.100", "both")
		expect("both", vip4, "error")
		expect("client", "10.0.8.100", "error")
		// A container that is connected to another network has its addresses, and no more when it leaves.
		more := c.Clone()
		more.Sandboxes["both"] = &network.Sandbox{ID: "both", Interfaces: []network.Interface{in("vethboth0", "net3", "10.0.8.7/24", 0), in("vethboth1", netID, "10.0.9.77/24", 1)}}
		w.ok(p.Set(t.Context(), more))
		expect("both", vip4, "server0")
		expect("both", "10.0.8.100", "both")
		expect("client", vip4, "server0")
		w.ok(p.Set(t.Context(), c))
		expect("both", vip4, "error")
		expect("both", "10.0.8.100", "both")
	})
}

// Two nodes on one host leave each other's addresses alone.
func TestVIPTwoNodes(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		q := w.plane("two")
		c, other := w.service(2), w.service(2)
		lead(c, "", backendsOf(c, 0)...)
		lead(other, "", backendsOf(other, 1)...)
		w.ok(p.Set(t.Context(), c))
		w.ok(q.Set(t.Context(), other))
		w.names(p, 2)
		w.names(q, 2)
		none := other.Clone()
		clear(none.Balancers)
		for range 2 {
			if got := w.spread(p.Path("client"), vip4+":80", 10); got["server0"] != 10 {
				t.Errorf("the first node's connections went to %v", got)
			}
			if len(q.believed().Balancers) > 0 {
				if got := w.spread(q.Path("client"), vip4+":80", 10); got["server1"] != 10 {
					t.Errorf("the second node's connections went to %v", got)
				}
			}
			w.ok(q.Set(t.Context(), none))
		}
	})
}

// TestMain serves as a keeper, and as the program that runs outside the cgroup of
// containers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == keeper.Command {
		os.Exit(keeper.Run(os.Args[2:], os.Stderr))
	}
	if to := os.Getenv("LEGION_TEST_CONNECT"); to != "" {
		_, err := net.DialTimeout("tcp", to, 2*time.Second)
		fmt.Println(errors.Is(err, syscall.ECONNREFUSED), err)
		return
	}
	os.Exit(m.Run())
}

// Who is in a sandbox but not in the node's cgroup is not balanced; and what he
// sends is refused on this node and goes nowhere.
func TestVIPOutsideCgroup(t *testing.T) {
	w := newWorld(t)
	p := requireEBPF(w)
	w.ok(p.Set(t.Context(), w.service(1)))
	w.names(p, 1)
	root, err := ebpfPlaces{}.cgroup2()
	w.ok(err)
	dir, err := os.Open(root)
	w.ok(err)
	defer dir.Close()
	for _, to := range []string{vip4 + ":80", "[" + vip6 + "]:80"} {
		var out []byte
		w.in(p.Path("client"), func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "LEGION_TEST_CONNECT="+to)
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
			out, err = cmd.CombinedOutput()
		})
		if err != nil || !strings.HasPrefix(string(out), "true") {
			t.Errorf("from outside the cgroup, %s: %s %v", to, out, err)
		}
	}
}
