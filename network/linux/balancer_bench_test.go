package linux

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// Virtual addresses against the backends' own, in one run: pairs of short batches,
// of which the medians count.

// crowd is an overlay with a client and one server that has the addresses of n
// backends.
func crowd(n int) (*network.Config, []netip.Addr) {
	c := (&network.Config{}).Clone()
	c.Overlays[netID] = &network.Overlay{ID: netID, VNI: 4096, MTU: 1350, Addresses: pfx("10.8.255.254/16")}
	one := func(id string, a netip.Addr) *network.Sandbox {
		a4 := a.As4()
		return &network.Sandbox{ID: id, Interfaces: []network.Interface{{
			Name: "eth0", HostName: "v" + id, Overlay: netID, MTU: 1350, MAC: net.HardwareAddr(append([]byte{2, 0x42}, a4[:]...)).String(),
			Addresses: []netip.Prefix{netip.PrefixFrom(a, 16)},
		}}}
	}
	c.Sandboxes["client"] = one("client", netip.MustParseAddr("10.8.0.2"))
	server := one("server", netip.MustParseAddr("10.8.0.3"))
	var backends []netip.Addr
	a := netip.MustParseAddr("10.8.1.0")
	for range n {
		a = a.Next()
		backends = append(backends, a)
		server.Interfaces[0].Addresses = append(server.Interfaces[0].Addresses, netip.PrefixFrom(a, 16))
	}
	c.Sandboxes["server"] = server
	b := &network.Balancer{BalancerKey: network.BalancerKey{Network: netID, Address: crowdVIP()}, Backends: backends}
	c.Balancers[b.BalancerKey] = b
	return c, backends
}

func crowdVIP() netip.Addr { return netip.MustParseAddr("10.8.200.1") }

// echoes accepts connections and answers what they say.
func (w *world) echoes(ns string) {
	w.t.Helper()
	w.in(ns, func() {
		l, err := net.Listen("tcp4", ":80")
		w.ok(err)
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 100)
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						if _, err := c.Write(b[:n]); err != nil {
							return
						}
					}
				}()
			}
		}()
	})
}

// connect opens a connection, without Go's poller, whose own time would hide
// what is measured.
func (w *world) connect(to netip.Addr) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: to.As4()}); err != nil {
		w.t.Fatal(to, err)
	}
	return fd
}

// question sends a question and waits for the answer.
func (w *world) question(fd int) {
	var buf [64]byte
	if _, err := unix.Write(fd, buf[:]); err != nil {
		w.t.Fatal(err)
	}
	if _, err := unix.Read(fd, buf[:]); err != nil {
		w.t.Fatal(err)
	}
}

// hangUp ends a connection without a TIME_WAIT.
func hangUp(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// pairs measures two things by turns, and reports the medians and the median of
// their ratios.
func pairs(b *testing.B, direct, vip func()) {
	var d, v, ratio []float64
	for i := 0; b.Loop(); i++ {
		var t [2]time.Duration
		for n := range 2 { // the one that goes first changes
			start := time.Now()
			if (n+i)%2 == 0 {
				direct()
				t[0] = time.Since(start)
			} else {
				vip()
				t[1] = time.Since(start)
			}
		}
		d, v, ratio = append(d, float64(t[0].Nanoseconds())), append(v, float64(t[1].Nanoseconds())), append(ratio, float64(t[1])/float64(t[0]))
	}
	median := func(l []float64) float64 { slices.Sort(l); return l[len(l)/2] }
	b.ReportMetric(median(d)/1000/batch, "direct-µs")
	b.ReportMetric(median(v)/1000/batch, "vip-µs")
	b.ReportMetric(median(ratio), "vip/direct")
	b.ReportMetric(0, "ns/op")
}

const batch = 20

func eachCrowd(b *testing.B, f func(b *testing.B, w *world, p *Plane, c *network.Config, backends []netip.Addr)) {
	for _, d := range []string{BalancerEBPF, BalancerNFTables} {
		for _, n := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", d, n), func(b *testing.B) {
				w := newWorld(b)
				w.balancer = d
				p := w.plane("")
				c, backends := crowd(n)
				w.ok(p.Set(b.Context(), c))
				w.echoes(p.Path("server"))
				f(b, w, p, c, backends)
			})
		}
	}
}

// BenchmarkVIPConnect is the time of a connection with a question and its answer,
// to a virtual address and to one of its backends: its inverse is the rate of one
// client.
func BenchmarkVIPConnect(b *testing.B) {
	eachCrowd(b, func(b *testing.B, w *world, p *Plane, _ *network.Config, backends []netip.Addr) {
		w.in(p.Path("client"), func() {
			for _, a := range backends { // everybody's address is known
				hangUp(w.connect(a))
			}
			next := 0
			pairs(b, func() {
				for range batch {
					next = (next + 7919) % len(backends)
					fd := w.connect(backends[next])
					w.question(fd)
					hangUp(fd)
				}
			}, func() {
				for range batch {
					fd := w.connect(crowdVIP())
					w.question(fd)
					hangUp(fd)
				}
			})
		})
	})
}

// BenchmarkVIPLatency is the time of a question and its answer on a connection
// that is there.
func BenchmarkVIPLatency(b *testing.B) {
	eachCrowd(b, func(b *testing.B, w *world, p *Plane, _ *network.Config, backends []netip.Addr) {
		w.in(p.Path("client"), func() {
			direct, vip := w.connect(backends[0]), w.connect(crowdVIP())
			defer hangUp(direct)
			defer hangUp(vip)
			ask := func(fd int) func() {
				return func() {
					for range batch {
						w.question(fd)
					}
				}
			}
			pairs(b, ask(direct), ask(vip))
		})
	})
}

// BenchmarkVIPReplace is the time of a Set in which a service's backends differ
// by one.
func BenchmarkVIPReplace(b *testing.B) {
	eachCrowd(b, func(b *testing.B, w *world, p *Plane, c *network.Config, backends []netip.Addr) {
		less := c.Clone()
		k := network.BalancerKey{Network: netID, Address: crowdVIP()}
		less.Balancers[k] = &network.Balancer{BalancerKey: k, Backends: backends[:len(backends)-1]}
		for i := 0; b.Loop(); i++ {
			w.ok(p.Set(b.Context(), []*network.Config{less, c}[i%2]))
		}
	})
}

// BenchmarkVIPSet100 has 100 sandboxes in a network of 100 services with 10
// backends each: the first Set of a daemon that finds it all, one after a change
// of a service, and a look.
func BenchmarkVIPSet100(b *testing.B) {
	for _, d := range []string{BalancerEBPF, BalancerNFTables} {
		w := newWorld(b)
		w.balancer = d
		p := w.plane("")
		c, _ := crowd(10)
		for i := range 100 {
			id := fmt.Sprintf("s%d", i)
			a := netip.AddrFrom4([4]byte{10, 8, 100, byte(i + 1)})
			c.Sandboxes[id] = &network.Sandbox{ID: id, Interfaces: []network.Interface{{
				Name: "eth0", HostName: "v" + id, Overlay: netID, MTU: 1350, MAC: fmt.Sprintf("02:42:0a:08:64:%02x", i+1), Addresses: []netip.Prefix{netip.PrefixFrom(a, 16)},
			}}}
		}
		without := c.Clone()
		for i := range 100 {
			k := network.BalancerKey{Network: netID, Address: netip.AddrFrom4([4]byte{10, 8, 201, byte(i + 1)})}
			bal := &network.Balancer{BalancerKey: k}
			for j := range 10 {
				bal.Backends = append(bal.Backends, netip.AddrFrom4([4]byte{10, 8, byte(i), byte(j)}))
			}
			c.Balancers[k] = bal
		}
		clear(without.Balancers)
		w.ok(p.Set(b.Context(), without))
		start := time.Now()
		w.ok(p.Set(b.Context(), c))
		first := time.Since(start)
		changed := c.Clone()
		k := network.BalancerKey{Network: netID, Address: netip.MustParseAddr("10.8.201.7")}
		changed.Balancers[k] = &network.Balancer{BalancerKey: k, Backends: c.Balancers[k].Backends[:9]}
		b.Run(d+"/change", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				w.ok(p.Set(b.Context(), []*network.Config{changed, c}[i%2]))
			}
			b.ReportMetric(float64(first.Microseconds())/1000, "first-ms")
		})
		b.Run(d+"/look", func(b *testing.B) {
			for b.Loop() {
				p.stale.Store(true)
				w.ok(p.Set(b.Context(), c))
			}
		})
	}
}
