package linux

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// BenchmarkAttach makes 48 sandboxes, eight by a Set as Networks has them made, and
// removes them: of containers on a bridge, of tasks in an overlay, and of tasks that
// are in the ingress network besides. All have a resolver, tasks a way out. The kernel
// removes devices for as long again as it takes to make them, and nothing else comes or
// goes while it does: that is waited for, but for "replaced".
func BenchmarkAttach(b *testing.B) {
	for _, kind := range []string{"bridge", "overlay", "overlay and mesh"} {
		b.Run(kind, func(b *testing.B) { benchmarkAttach(b, kind, true) })
	}
	b.Run("overlay and mesh, replaced", func(b *testing.B) { benchmarkAttach(b, "overlay and mesh", false) })
}

const attachPortion = 8

func benchmarkAttach(b *testing.B, kind string, alone bool) {
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
		if alone {
			w.awaitGone(w.hosts["h3"], p.overlayPath("ing"), p.overlayPath("net1"))
		}
	}
	n := float64(6 * attachPortion * b.N)
	b.ReportMetric(float64(wall.Microseconds())/n, "µs/attach")
	b.ReportMetric(float64(cpu.Microseconds())/n, "cpu-µs/attach")
}

// awaitGone waits until no sandbox has an end of an interface in some namespaces.
func (w *world) awaitGone(namespaces ...string) {
	w.t.Helper()
	for _, ns := range namespaces {
		w.in(ns, func() {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			w.ok(err)
			defer h.Close()
			for left := true; left; {
				links, err := list(h)
				w.ok(err)
				left = false
				for _, l := range links {
					_, kind, sandbox := ours(l.Attrs().Alias)
					left = left || kind == "sandbox" && strings.HasPrefix(sandbox, "b")
				}
			}
		})
	}
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
