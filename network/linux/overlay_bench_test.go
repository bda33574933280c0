package linux

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/legion-swarm/legion/network"
)

// stream sends over TCP for a while and returns bytes per second as received.
func (w *world) stream(from, to, addr string, d time.Duration) float64 {
	w.t.Helper()
	var l net.Listener
	w.in(to, func() {
		var err error
		l, err = net.Listen("tcp", addr)
		w.ok(err)
	})
	defer l.Close()
	var c net.Conn
	w.in(from, func() {
		var err error
		c, err = net.DialTimeout("tcp", addr, 3*time.Second)
		w.ok(err)
	})
	defer c.Close()
	s, err := l.Accept()
	w.ok(err)
	defer s.Close()
	go func() {
		for b := make([]byte, 1<<17); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	b, n := make([]byte, 1<<17), 0
	start := time.Now()
	w.ok(s.SetReadDeadline(start.Add(d)))
	for {
		m, err := s.Read(b)
		n += m
		if err != nil {
			break
		}
	}
	return float64(n) / time.Since(start).Seconds()
}

// trips returns how long a message of a byte takes to come back, the median.
func (w *world) trips(from, to, addr string, n int) time.Duration {
	w.t.Helper()
	w.in(to, func() {
		l, err := net.Listen("tcp", addr)
		w.ok(err)
		go func() {
			defer l.Close()
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(c, c)
				c.Close()
			}
		}()
	})
	var c net.Conn
	w.in(from, func() {
		var err error
		c, err = net.DialTimeout("tcp", addr, 3*time.Second)
		w.ok(err)
	})
	defer c.Close()
	var all []time.Duration
	b := make([]byte, 1)
	for range n {
		start := time.Now()
		_, err := c.Write(b)
		w.ok(err)
		_, err = io.ReadFull(c, b)
		w.ok(err)
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// routed joins a namespace to each host, which route to each other: 172.20.0.2 and
// 172.21.0.2.
func (p *pair) routed() (a, b string) {
	p.t.Helper()
	var ns [2]string
	for i, host := range []string{p.host, p.outside} {
		ns[i] = p.namespace(fmt.Sprint("routed", i))
		p.in(host, func() {
			f, err := os.Open(ns[i])
			p.ok(err)
			defer f.Close()
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU = "r0", 1400
			p.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(f.Fd())}))
			p.address("r0", fmt.Sprintf("172.2%d.0.1/24", i))
			p.ok(writeSysctl("/proc/sys/net/ipv4/ip_forward", "1"))
			p.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(fmt.Sprintf("172.2%d.0.0/24", 1-i))), Gw: net.IPv4(10, 99, 0, byte(2-i))}))
		})
		p.in(ns[i], func() {
			p.ok(netlink.LinkSetUp(p.link("lo")))
			p.address("eth0", fmt.Sprintf("172.2%d.0.2/24", i))
			p.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(172, byte(20+i), 0, 1)}))
		})
	}
	return ns[0], ns[1]
}

// BenchmarkOverlay compares what overlays carry with what is plainly routed between
// the same nodes, in turns: net1 is encrypted.
func BenchmarkOverlay(b *testing.B) {
	w := &pair{world: newWorld(b)}
	for i, host := range []string{w.host, w.outside} {
		w.planes[i] = w.planeOn(host, fmt.Sprint("node", i), "")
		w.configs[i] = pairConfig(i, func(o *network.Overlay) {
			if o.ID == "net1" {
				encrypted(o)
			}
		})
	}
	w.setKeys(0, 1, 1)
	w.setKeys(1, 1, 1)
	w.established()
	ra, rb := w.routed()
	ways := []struct{ name, from, to, addr string }{
		{"routed", ra, rb, "172.21.0.2"},
		{"plain", w.planes[0].Path("c2"), w.planes[1].Path("c2"), "10.0.2.3"},
		{"encrypted", w.planes[0].Path("c1"), w.planes[1].Path("c1"), "10.0.1.3"},
	}
	var rates, times, costs [3][]float64
	const duration = 300 * time.Millisecond
	for b.Loop() {
		for i, y := range ways {
			used := cpuTime()
			rate := w.stream(y.from, y.to, y.addr+":5001", duration) / 1e6
			rates[i] = append(rates[i], rate)
			costs[i] = append(costs[i], float64((cpuTime()-used).Microseconds())/(rate*duration.Seconds()))
			times[i] = append(times[i], float64(w.trips(y.from, y.to, y.addr+":5002", 1000).Nanoseconds())/1e3)
		}
	}
	ratio := func(x, y []float64) float64 {
		var r []float64
		for i := range x {
			r = append(r, x[i]/y[i])
		}
		return median(r)
	}
	for i, y := range ways {
		b.ReportMetric(median(rates[i]), y.name+"-MB/s")
		b.ReportMetric(median(times[i]), y.name+"-µs")
		b.ReportMetric(median(costs[i]), y.name+"-cpu-µs/MB")
	}
	b.ReportMetric(ratio(rates[1], rates[0]), "plain/routed")
	b.ReportMetric(ratio(rates[2], rates[1]), "encrypted/plain")
	b.ReportMetric(ratio(times[2], times[1]), "latency-encrypted/plain")
	b.ReportMetric(0, "ns/op")
}

func median(l []float64) float64 {
	l = slices.Sorted(slices.Values(l))
	return l[len(l)/2]
}
