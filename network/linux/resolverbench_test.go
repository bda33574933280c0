package linux

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/dns"
)

// blocking is a UDP socket without Go's poller, as other languages' clients have.
func (w *world) blocking(path string, to netip.AddrPort) (fd int) {
	w.t.Helper()
	w.in(path, func() {
		var err error
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		w.ok(err)
		w.ok(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
		w.ok(unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
	})
	return fd
}

// BenchmarkResolver asks with eight clients in one namespace: by port 53, which
// is rewritten, and a server that is reached plainly. echo is a goroutine that sends
// back what comes, the most that a server here could do.
func BenchmarkResolver(b *testing.B) {
	w := newWorld(b)
	p := w.plane("")
	w.ok(p.Set(b.Context(), named()))
	var echo *net.UDPConn
	w.in(p.Path("s0-0"), func() {
		var err error
		echo, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		w.ok(err)
	})
	defer echo.Close()
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName("web."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	m, err := q.Pack()
	w.ok(err)
	var udp *net.UDPConn
	var tcp *net.TCPListener
	w.in(p.Path("s0-0"), func() {
		var err error
		udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		w.ok(err)
		tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		w.ok(err)
	})
	hub := dns.NewHub(nil, slog.New(slog.DiscardHandler))
	hub.SetZones(named().Zones)
	own := hub.NewServer(udp, tcp, &network.Resolver{Zones: []string{"n"}}, nil)
	go own.Run(b.Context())
	for range 3 {
		for _, c := range []struct {
			name string
			to   netip.AddrPort
		}{{"translated", netip.AddrPortFrom(resolverAddr(), dnsPort)}, {"plain", netip.MustParseAddrPort(udp.LocalAddr().String())}, {"echo", netip.MustParseAddrPort(echo.LocalAddr().String())}} {
			b.Run(c.name, func(b *testing.B) { w.queries(b, p.Path("s0-0"), c.to, m) })
		}
	}
}

func (w *world) queries(b *testing.B, path string, to netip.AddrPort, m []byte) {
	const clients = 8
	took := make([][]time.Duration, clients)
	fds := make([]int, clients)
	for i := range fds {
		fds[i] = w.blocking(path, to)
		defer unix.Close(fds[i])
	}
	var wg sync.WaitGroup
	b.ResetTimer()
	for i, fd := range fds {
		n := b.N / clients
		if i == 0 {
			n += b.N % clients
		}
		wg.Go(func() {
			buf := make([]byte, 512)
			for range n {
				start := time.Now()
				if _, err := unix.Write(fd, m); err != nil {
					b.Error(err)
					return
				}
				_, err := unix.Read(fd, buf)
				for errors.Is(err, unix.EINTR) {
					_, err = unix.Read(fd, buf)
				}
				if err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkResolverAttach makes 50 sandboxes at once and removes them, with
// resolvers and without.
func BenchmarkResolverAttach(b *testing.B) {
	for range 2 {
		for _, with := range []bool{true, false} {
			b.Run(fmt.Sprint(with), func(b *testing.B) {
				w := newWorld(b)
				p := w.plane("")
				c, empty := (*network.Config)(nil).Clone(), (*network.Config)(nil).Clone()
				for i := range 50 {
					s := &network.Sandbox{ID: fmt.Sprint("s", i)}
					if with {
						s.Resolver = &network.Resolver{}
					}
					c.Sandboxes[s.ID] = s
				}
				var made, cpu time.Duration
				for b.Loop() {
					start, used := time.Now(), cpuTime()
					w.ok(p.Set(b.Context(), c))
					made, cpu = made+time.Since(start), cpu+cpuTime()-used
					w.ok(p.Set(b.Context(), empty))
				}
				b.ReportMetric(float64(made.Microseconds())/float64(50*b.N), "µs/sandbox")
				b.ReportMetric(float64(cpu.Microseconds())/float64(50*b.N), "cpu-µs/sandbox")
			})
		}
	}
}

// BenchmarkResolverMemory tells what 200 resolvers take in this process, after
// each has answered.
func BenchmarkResolverMemory(b *testing.B) {
	const sandboxes = 200
	w := newWorld(b)
	p := w.plane("")
	c, with := (*network.Config)(nil).Clone(), (*network.Config)(nil).Clone()
	for i := range sandboxes {
		s := &network.Sandbox{ID: fmt.Sprint("s", i)}
		c.Sandboxes[s.ID] = s
		r := *s
		r.Resolver = &network.Resolver{}
		with.Sandboxes[r.ID] = &r
	}
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for b.Loop() {
		w.ok(p.Set(b.Context(), c))
		before := used()
		w.ok(p.Set(b.Context(), with))
		for id := range with.Sandboxes {
			_, _ = w.lookup(p, id, "udp", "ip4", "web.")
		}
		b.ReportMetric(float64(int64(used())-int64(before))/sandboxes, "B/sandbox")
	}
}
