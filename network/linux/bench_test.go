package linux

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

// BenchmarkSet100 sets a config of 100 sandboxes in which one differs.
func BenchmarkSet100(b *testing.B) {
	w := newWorld(b)
	p := w.plane("")
	c := networktest.Sample(50)
	w.ok(p.Set(b.Context(), c))
	less := c.Clone()
	delete(less.Sandboxes, "s0-7")
	for i := 0; b.Loop(); i++ {
		w.ok(p.Set(b.Context(), []*network.Config{less, c}[i%2]))
	}
}

// BenchmarkSet100Unchanged sets a config of 100 sandboxes that is already there.
func BenchmarkSet100Unchanged(b *testing.B) {
	w := newWorld(b)
	p := w.plane("")
	c := networktest.Sample(50)
	w.ok(p.Set(b.Context(), c))
	for b.Loop() {
		w.ok(p.Set(b.Context(), c))
	}
}

// BenchmarkObserve100 looks at 100 sandboxes, as after an alarm.
func BenchmarkObserve100(b *testing.B) {
	w := newWorld(b)
	p := w.plane("")
	c := networktest.Sample(50)
	w.ok(p.Set(b.Context(), c))
	for b.Loop() {
		p.stale.Store(true)
		w.ok(p.Set(b.Context(), c))
	}
}

// BenchmarkAttach50 makes 50 sandboxes at once and removes them.
func BenchmarkAttach50(b *testing.B) {
	w := newWorld(b)
	p := w.plane("")
	c := networktest.Sample(25)
	c.Ports = nil
	empty := c.Clone()
	clear(empty.Sandboxes)
	w.ok(p.Set(b.Context(), empty))
	var attach time.Duration
	var cpu atomic.Int64
	for i := 0; b.Loop(); i++ {
		next := empty.Clone()
		for _, s := range c.Sandboxes {
			n := *s
			f := s.Interfaces[0]
			f.HostName = fmt.Sprintf("%s-%d", f.HostName, i)
			n.Interfaces = []network.Interface{f}
			next.Sandboxes[n.ID] = &n
		}
		start, used := time.Now(), cpuTime()
		w.ok(p.Set(b.Context(), next))
		attach += time.Since(start)
		cpu.Add(int64(cpuTime() - used))
		w.ok(p.Set(b.Context(), empty))
	}
	n := float64(50 * b.N)
	b.ReportMetric(float64(attach.Microseconds())/n, "µs/attach")
	b.ReportMetric(float64(cpu.Load()/1000)/n, "cpu-µs/attach")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTeardown200 removes 200 sandboxes at once, as when a node is drained.
func BenchmarkTeardown200(b *testing.B) {
	w := newWorld(b)
	p := w.plane("")
	c := networktest.Sample(100)
	c.Ports = nil
	empty := c.Clone()
	clear(empty.Sandboxes)
	var teardown time.Duration
	for b.Loop() {
		w.ok(p.Set(b.Context(), c))
		start := time.Now()
		w.ok(p.Set(b.Context(), empty))
		teardown += time.Since(start)
	}
	b.ReportMetric(float64(teardown.Milliseconds())/float64(b.N), "ms/teardown")
}
