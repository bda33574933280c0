package linux

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/legion-swarm/legion/network"
)

// How virtual addresses outlive daemons, damage and changes.

// connecting connects again and again until stop is called, which returns how
// often that worked and what else happened.
//
// A connection's peer is the address that was connected to, unless peer is false.
func (w *world) connecting(ns, to string, peer bool) (stop func() (int, error)) {
	w.t.Helper()
	var done atomic.Bool
	var n int
	var first error
	var wg sync.WaitGroup
	wg.Go(func() {
		w.in(ns, func() {
			for !done.Load() {
				c, err := net.DialTimeout("tcp", to, 2*time.Second)
				if err == nil {
					if got := c.RemoteAddr().String(); peer && got != to {
						err = fmt.Errorf("connected to %s", got)
					}
					_ = c.(*net.TCPConn).SetLinger(0)
					c.Close()
				}
				if err != nil && first == nil {
					first = err
				}
				n++
			}
		})
	})
	return func() (int, error) {
		done.Store(true)
		wg.Wait()
		return n, first
	}
}

// crash ends a plane as the kernel ends a killed process.
func (p *Plane) crash() {
	p.sockets.close()
	_ = p.keeper.Close()
	if b, ok := p.balancing.driver.(*ebpfBalancer); ok {
		_ = b.close()
	}
	p.balancing.driver = nil
}

// While no daemon is there, and while the next begins, connections are made.
func TestVIPOutlivesDaemon(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(3)
		w.ok(p.Set(t.Context(), c))
		w.names(p, 3)
		client := p.Path("client")
		var held net.Conn
		w.in(client, func() {
			var err error
			held, err = net.Dial("tcp", vip4+":80")
			w.ok(err)
		})
		defer held.Close()
		stop := w.connecting(client, vip4+":80", true)
		p.crash()
		// At first the daemon knows nothing of services: what is there stays.
		unknown := c.Clone()
		o := *c.Overlays[netID]
		o.Unknown = true
		unknown.Overlays[netID] = &o
		clear(unknown.Balancers)
		p = w.plane("")
		w.ok(p.Set(t.Context(), unknown))
		w.ok(p.Set(t.Context(), unknown.Clone()))
		if got := w.spread(client, vip4+":80", 30); len(got) != 3 {
			t.Errorf("with a daemon that knows nothing yet, connections went to %v", got)
		}
		w.ok(p.Set(t.Context(), c))
		less := c.Clone()
		lead(less, "", netip.MustParseAddr("10.0.9.4"))
		w.ok(p.Set(t.Context(), less))
		if got := w.spread(client, vip4+":80", 20); got["server1"] != 20 {
			t.Errorf("after the restart and a change, connections went to %v", got)
		}
		if n, err := stop(); err != nil {
			t.Errorf("one of %d connections: %v", n, err)
		}
		if got := held.RemoteAddr().String(); got != vip4+":80" {
			t.Errorf("a connection from before the restart is to %s", got)
		}
		none := less.Clone()
		clear(none.Balancers)
		w.ok(p.Set(t.Context(), none))
		if _, err := w.greeting(client, vip4+":80"); err == nil {
			t.Error("an address that is gone still leads somewhere")
		}
	})
}

func requireEBPF(w *world) *Plane {
	w.t.Helper()
	w.balancer = BalancerEBPF
	if err := (ebpfPlaces{pins: filepath.Join(w.dir, "bpf"), cgroup: w.cgroup()}).probe(); err != nil {
		w.t.Skipf("this kernel has no eBPF for cgroups: %v", err)
	}
	return w.plane("")
}

func (w *world) ebpf(p *Plane) *ebpfBalancer {
	w.t.Helper()
	b, ok := p.balancing.driver.(*ebpfBalancer)
	if !ok {
		w.t.Fatal("eBPF is not in use")
	}
	return b
}

func (w *world) programs(p *Plane) map[string]string {
	w.t.Helper()
	m := map[string]string{}
	for name, l := range w.ebpf(p).links {
		i, err := l.Info()
		w.ok(err)
		m[name] = fmt.Sprint(i.ID, i.Program)
	}
	return m
}

// A daemon of another version replaces programs, and even maps, while connections
// are made.
func TestVIPUpgrade(t *testing.T) {
	w := newWorld(t)
	p := requireEBPF(w)
	c := w.service(2)
	w.ok(p.Set(t.Context(), c))
	w.names(p, 2)
	dir, pins := w.ebpf(p).dir, w.ebpf(p).places.pins
	// Sockets of the moment in which maps are replaced show their backend's address.
	stop := w.connecting(p.Path("client"), vip4+":80", false)
	before := w.programs(p)
	p.stale.Store(true)
	w.ok(p.Set(t.Context(), c))
	if got := w.programs(p); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("a look replaced programs: %v, %v", before, got)
	}
	for _, step := range []struct {
		what string
		do   func() error
		same bool
	}{
		{"the same", func() error { return nil }, true},
		{"another version", func() error { return os.Remove(filepath.Join(dir, versionPin)) }, false},
		{"a link is not pinned", func() error { return os.Remove(filepath.Join(dir, "connect6")) }, false},
		{"another layout", func() error { return os.Rename(dir, filepath.Join(pins, "maps-of-old")) }, false},
	} {
		p.crash()
		w.ok(step.do())
		p = w.plane("")
		w.ok(p.Set(t.Context(), c))
		after := w.programs(p)
		if (fmt.Sprint(after) == fmt.Sprint(before)) != step.same {
			t.Errorf("%s: programs were %v, are %v", step.what, before, after)
		}
		before = after
		entries, err := os.ReadDir(pins)
		w.ok(err)
		for _, e := range entries {
			if e.IsDir() && e.Name() != filepath.Base(dir) {
				t.Errorf("%s: left behind: %s", step.what, e.Name())
			}
		}
		if got := w.spread(p.Path("client"), vip4+":80", 20); len(got) != 2 {
			t.Errorf("%s: connections went to %v", step.what, got)
		}
	}
	if n, err := stop(); err != nil {
		t.Errorf("one of %d connections: %v", n, err)
	}
}

// A daemon that is killed at any moment leaves what the next one makes whole.
func TestVIPKilledHalfway(t *testing.T) {
	w := newWorld(t)
	p := requireEBPF(w)
	c := w.service(2)
	w.ok(p.Set(t.Context(), c))
	w.names(p, 2)
	dir, pins := w.ebpf(p).dir, w.ebpf(p).places.pins
	for _, halfway := range []struct {
		what string
		do   func()
	}{
		{"before anything was pinned", func() { w.ok(os.RemoveAll(dir)) }},
		{"before a map was pinned", func() { w.ok(os.Remove(filepath.Join(dir, "members"))) }},
		{"before programs were attached", func() {
			for _, n := range []string{"connect4", "sendmsg6", "release", versionPin} {
				w.ok(os.Remove(filepath.Join(dir, n)))
			}
		}},
		{"before the version was written", func() {
			w.ok(os.Remove(filepath.Join(dir, versionPin)))
			w.ok(os.Symlink("half", filepath.Join(dir, versionPin+"-next")))
		}},
		{"before maps were filled", func() {
			for _, n := range []string{"vips", "netns", "backends", "members"} {
				w.drain(filepath.Join(dir, n))
			}
		}},
		{"before the old was removed", func() {
			m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "netns"), nil)
			w.ok(err)
			w.ok(m.Put(uint64(1), uint64(2)))
			w.ok(m.Close())
		}},
	} {
		p.crash()
		halfway.do()
		p = w.plane("")
		w.ok(p.Set(t.Context(), c))
		if got := w.spread(p.Path("client"), vip4+":80", 20); len(got) != 2 {
			t.Errorf("%s: connections went to %v", halfway.what, got)
		}
		n, err := readMap[uint64, uint64](w.ebpf(p).maps["netns"])
		w.ok(err)
		if len(n) != len(c.Sandboxes) {
			t.Errorf("%s: %d namespaces are known, not %d", halfway.what, len(n), len(c.Sandboxes))
		}
	}
	w.ok(p.Set(t.Context(), &network.Config{}))
	if _, err := os.Stat(pins); !os.IsNotExist(err) {
		t.Errorf("pins are left when there is no service any more: %v", err)
	}
}

// drain empties a map.
func (w *world) drain(path string) {
	w.t.Helper()
	m, err := ebpf.LoadPinnedMap(path, nil)
	w.ok(err)
	defer m.Close()
	key := make([]byte, m.KeySize())
	for m.NextKey(nil, &key) == nil {
		w.ok(m.Delete(key))
	}
}

// What somebody damaged is put back by the next look.
func TestVIPDamage(t *testing.T) {
	w := newWorld(t)
	p := requireEBPF(w)
	c := w.service(2)
	w.ok(p.Set(t.Context(), c))
	w.names(p, 2)
	b := w.ebpf(p)
	for _, d := range []struct {
		what string
		do   func()
	}{
		{"a map is emptied", func() { w.drain(filepath.Join(b.dir, "vips")) }},
		{"all maps are emptied", func() {
			for _, n := range []string{"vips", "netns", "backends", "members"} {
				w.drain(filepath.Join(b.dir, n))
			}
		}},
		{"a backend is changed", func() {
			all, err := readMap[backendKey, address16](b.maps["backends"])
			w.ok(err)
			for k := range all {
				w.ok(b.maps["backends"].Put(k, address16{10: 0xff, 11: 0xff, 12: 10, 15: 77}))
			}
		}},
		{"a program is detached", func() {
			w.ok(os.Remove(filepath.Join(b.dir, "connect4")))
			w.ok(b.links["connect4"].Close())
		}},
		{"pins are removed", func() { w.ok(os.RemoveAll(b.dir)) }},
	} {
		d.do()
		p.stale.Store(true) // the look of every minute
		w.ok(p.Set(t.Context(), c))
		if got := w.spread(p.Path("client"), vip4+":80", 20); len(got) != 2 {
			t.Errorf("%s: connections went to %v", d.what, got)
		}
		if !b.intact() {
			t.Errorf("%s: not whole afterwards", d.what)
		}
	}
}

// A sandbox that flushed its rules has them again after the next look.
func TestVIPDamageNFTables(t *testing.T) {
	w := newWorld(t)
	w.balancer = BalancerNFTables
	p := w.plane("")
	c := w.service(2)
	w.ok(p.Set(t.Context(), c))
	w.names(p, 2)
	x := p.balancing.driver.(*nftBalancer).boxes["client"]
	w.ok(p.balancing.driver.remove([]*vipBox{&x.vipBox}))
	p.balancing.driver.(*nftBalancer).boxes["client"] = x // as if it knew nothing of it
	p.stale.Store(true)
	w.ok(p.Set(t.Context(), c))
	if got := w.spread(p.Path("client"), vip4+":80", 20); len(got) != 2 {
		t.Errorf("connections went to %v", got)
	}
}

// Backends are replaced thousands of times while connections are made: each finds
// one that serves.
func TestVIPChurn(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(4)
		w.ok(p.Set(t.Context(), c))
		w.names(p, 4)
		all := c.Balancers[network.BalancerKey{Network: netID, Address: netip.MustParseAddr(vip4)}].Backends
		stop := w.connecting(p.Path("client"), vip4+":80", true)
		stop6 := w.connecting(p.Path("server0"), "["+vip6+"]:80", true)
		start := time.Now()
		sets := 0
		for time.Since(start) < 2*time.Second {
			next := c.Clone()
			lead(next, "", all[sets%3], all[3])
			if sets%5 == 0 {
				lead(next, network.BalanceLeast, all...)
			}
			w.ok(p.Set(t.Context(), next))
			sets++
		}
		n, err := stop()
		n6, err6 := stop6()
		if err != nil || err6 != nil {
			t.Errorf("%d connections during %d changes: %v; IPv6: %d, %v", n, sets, err, n6, err6)
		}
		t.Logf("%d and %d connections during %d changes", n, n6, sets)
	})
}
