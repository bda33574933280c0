package linux

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/legion-swarm/legion/network"
)

// BenchmarkAttach makes 48 sandboxes, eight by a Set as Networks has them made, and
// removes them: of containers on a bridge, of tasks in an overlay, and of tasks that
// are in the ingress network besides. All have a resolver, tasks a way out.
func BenchmarkAttach(b *testing.B) {
	for _, kind := range []string{"bridge", "overlay", "overlay and mesh"} {
		b.Run(kind, func(b *testing.B) { benchmarkAttach(b, kind) })
	}
}

const attachPortion = 8

func benchmarkAttach(b *testing.B, kind string) {
	w := newMeshWorld(b)
	p, c := w.planes[3], w.config[3]
	o := &network.Overlay{ID: "net1", VNI: 4097, MTU: 1450, Addresses: pfx("10.0.1.1/24")}
	c.Overlays[o.ID] = o
	z := &network.Zone{ID: o.ID, Name: "net1", Names: map[string][]netip.Addr{}}
	c.Zones[z.ID] = z
	w.ok(p.Set(b.Context(), c))
	var wall, cpu time.Duration
	for round := 0; b.Loop(); round++ {
		next := c
		start, used := time.Now(), cpuTime()
		for i := range 6 {
			next = next.Clone()
			for j := range attachPortion {
				s := attached(kind, round, 2+i*attachPortion+j)
				next.Sandboxes[s.ID] = s
			}
			w.ok(p.Set(b.Context(), next))
		}
		wall += time.Since(start)
		cpu += cpuTime() - used
		w.ok(p.Set(b.Context(), c))
	}
	n := float64(6 * attachPortion * b.N)
	b.ReportMetric(float64(wall.Microseconds())/n, "µs/attach")
	b.ReportMetric(float64(cpu.Microseconds())/n, "cpu-µs/attach")
}

// attached is a sandbox with number n of a kind.
func attached(kind string, round, n int) *network.Sandbox {
	s := &network.Sandbox{ID: fmt.Sprint("b", n), Resolver: &network.Resolver{Zones: []string{"net1"}}}
	add := func(overlay, bridge, prefix string) {
		s.Interfaces = append(s.Interfaces, network.Interface{
			Name: fmt.Sprint("eth", len(s.Interfaces)), HostName: fmt.Sprintf("v%d-%d-%d", round, n, len(s.Interfaces)), Overlay: overlay, Bridge: bridge, MTU: 1450,
			MAC: fmt.Sprintf("02:42:%02x:00:%02x:%02x", len(s.Interfaces), len(bridge), n), Addresses: pfx(fmt.Sprintf(prefix, n)),
		})
	}
	if kind == "bridge" {
		add("", "legion0", "172.17.1.%d/16")
		s.Gateway4 = netip.MustParseAddr("172.17.0.1")
		return s
	}
	if kind == "overlay and mesh" {
		add("ing", "", "10.0.0.1%02d/24")
	}
	add("net1", "", "10.0.1.%d/24")
	add("", "gw0", "172.18.1.%d/16")
	s.Gateway4 = netip.MustParseAddr("172.18.0.1")
	return s
}
