package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// BenchmarkMesh compares published ports of the mesh with plain translation, side
// by side, as the ratio of medians: to a task on the node against a port of that
// node alone (published in host mode); to a task elsewhere against the same way
// with the client's address given up.
func BenchmarkMesh(b *testing.B) {
	w := newMeshWorld(b)
	for i := 1; i <= 3; i++ {
		publish(w.config[i], network.TCP, 8010, 21).Target = 81
		publish(w.config[i], network.TCP, 8020, 22).Target = 81
	}
	p := published("t", "0.0.0.0:9010", "172.18.0.5:81")
	w.config[1].Ports[p.PortKey] = p
	w.set()
	for i := 1; i <= 2; i++ {
		w.work(w.task(i))
	}
	w.plain(3, 9020, meshAddr4(22).AsSlice(), 81)
	w.plain(3, 9021, meshAddr4(22).AsSlice(), 80)
	cases := []struct{ what, mesh, plain string }{
		{"local", "10.99.0.1:8010", "10.99.0.1:9010"},
		{"remote", "10.99.0.3:8020", "10.99.0.3:9020"},
	}
	for b.Loop() {
		for _, c := range cases {
			for _, m := range []struct {
				what string
				run  func(to string) (rate, perCPU float64)
			}{{"connections", w.connections}, {"questions", w.questions}, {"throughput", w.throughput}} {
				var rates, perCPU []float64 // ratios of neighbours
				for range benchRounds {
					r1, c1 := m.run(c.mesh)
					r2, c2 := m.run(c.plain)
					rates, perCPU = append(rates, r1/r2), append(perCPU, c1/c2)
				}
				b.ReportMetric(median(rates), c.what+"-"+m.what)
				b.ReportMetric(median(perCPU), c.what+"-"+m.what+"-per-cpu")
			}
		}
	}
}

// plain has a port of host i lead to a task elsewhere, with the host's address
// instead of the client's.
func (w *meshWorld) plain(i int, port uint16, to []byte, target byte) {
	w.t.Helper()
	w.ok(w.planes[i].transact(func(c *filterConn) error {
		b := w.planes[i].newMeshBuilder(c, w.planes[i].mesh.rules)
		b.t = &nftables.Table{Family: nftables.TableFamilyINet, Name: fmt.Sprintf("plain-%d", port)}
		c.AddTable(b.t)
		pre := b.base("pre", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityDstNAT-1)
		b.rule(pre, l4proto(6), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
		}, b.setMark(expr.MetaKeyMARK, b.w.mark), b.setConnMark(), []expr.Any{
			&expr.Immediate{Register: reg32, Data: to},
			&expr.Immediate{Register: reg32 + 4, Data: []byte{0, target}},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: natFamily(false), RegAddrMin: reg32, RegProtoMin: reg32 + 4},
		})
		post := b.base("post", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySource-1)
		b.rule(post, oif(expr.CmpOpEq, b.w.device), []expr.Any{
			&expr.Ct{Register: 1, Key: expr.CtKeyPROTODST, Direction: 0},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
			&expr.Immediate{Register: reg32, Data: b.w.addr4.AsSlice()},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: natFamily(false), RegAddrMin: reg32},
		})
		return nil
	}))
}

// work serves port 81: a byte is answered by one, a 'd' by data without end. It
// works by plain system calls, as clients do: what is measured is the kernel.
func (w *meshWorld) work(ns string) {
	w.t.Helper()
	w.in(ns, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		w.ok(err)
		w.ok(unix.Bind(fd, &unix.SockaddrInet4{Port: 81}))
		w.ok(unix.Listen(fd, 1024))
		var end atomic.Bool
		w.t.Cleanup(func() {
			end.Store(true)
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		})
		for range 2 {
			go func() {
				for !end.Load() {
					if c, _, err := unix.Accept(fd); err == nil {
						serveWork(c)
					}
				}
			}()
		}
	})
}

func serveWork(c int) {
	defer unix.Close(c)
	buf := make([]byte, 128<<10)
	for {
		if n, err := unix.Read(c, buf[:1]); err != nil || n == 0 {
			return
		}
		for buf[0] == 'd' {
			if _, err := unix.Write(c, buf); err != nil {
				return
			}
		}
		if _, err := unix.Write(c, buf[:1]); err != nil {
			return
		}
	}
}

const benchRound, benchRounds = 40 * time.Millisecond, 24

// connect makes a connection from outside, by a system call.
func (w *meshWorld) connect(to netip.AddrPort) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	w.ok(err)
	w.ok(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	w.ok(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}))
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if errors.Is(err, unix.EINTR) { // by the runtime's own signals
		w.ok(unix.Close(fd))
		return w.connect(to)
	}
	w.ok(err)
	return fd
}

// measure runs f, from outside, for a round, and returns how often a second, and
// how often a second of processor time.
func (w *meshWorld) measure(f func() float64) (rate, perCPU float64) {
	w.in(w.hosts["out"], func() {
		n, start, used := 0.0, time.Now(), cpuTime()
		for time.Since(start) < benchRound {
			n += f()
		}
		rate, perCPU = n/time.Since(start).Seconds(), n/(cpuTime()-used).Seconds()
	})
	return rate, perCPU
}

// connections, each with a question.
func (w *meshWorld) connections(to string) (rate, perCPU float64) {
	at, buf := netip.MustParseAddrPort(to), []byte("q")
	return w.measure(func() float64 {
		c := w.connect(at)
		w.ask1(c, buf)
		w.ok(unix.Close(c))
		return 1
	})
}

func (w *meshWorld) ask1(c int, buf []byte) {
	_, err := unix.Write(c, buf)
	w.ok(err)
	w.read(c, buf)
}

func (w *meshWorld) read(c int, buf []byte) int {
	for {
		n, err := unix.Read(c, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		w.ok(err)
		return n
	}
}

// questions on one connection.
func (w *meshWorld) questions(to string) (rate, perCPU float64) {
	buf, c := []byte("q"), 0
	w.in(w.hosts["out"], func() { c = w.connect(netip.MustParseAddrPort(to)) })
	defer unix.Close(c)
	return w.measure(func() float64 {
		w.ask1(c, buf)
		return 1
	})
}

// throughput is what one connection carries, in MB.
func (w *meshWorld) throughput(to string) (rate, perCPU float64) {
	c, buf := 0, make([]byte, 256<<10)
	w.in(w.hosts["out"], func() { c = w.connect(netip.MustParseAddrPort(to)) })
	defer unix.Close(c)
	_, err := unix.Write(c, []byte("d"))
	w.ok(err)
	return w.measure(func() float64 {
		return float64(w.read(c, buf)) / 1e6
	})
}
