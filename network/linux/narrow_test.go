package linux

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/legion-swarm/legion/network"
)

// busy adds a sandbox to a config, whose resolver keeps the Set that makes it waiting
// until release is called; entered is closed when it waits.
func busy(p *Plane, c *network.Config) (_ *network.Config, entered <-chan struct{}, release func()) {
	at, done := make(chan struct{}), make(chan struct{})
	p.commit = func(t *transaction) error {
		close(at)
		<-done
		return t.commit()
	}
	c = c.Clone()
	c.Sandboxes["busy"] = &network.Sandbox{ID: "busy", Resolver: &network.Resolver{}}
	return c, at, sync.OnceFunc(func() { close(done) })
}

// A task that leaves gets no connections from a published port any more, also while a
// Set is busy that knows of it still.
func TestNarrowMeshDuringSet(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	p := w.planes[3]
	p.Narrow(w.config[3])
	ask := func(when string) {
		t.Helper()
		for _, proto := range []string{"tcp", "udp"} {
			for range 20 {
				if seen, name := w.query(w.hosts["out"], proto, "10.99.0.3:8000"); name != "2" || seen != "10.99.0.100" {
					t.Fatalf("%s, %s: %s %s", when, proto, seen, name)
				}
			}
			if seen, name := w.query(w.hosts["out"], proto, "10.99.0.3:8001"); seen != "error" {
				t.Errorf("%s, %s: a port without backends: %s %s", when, proto, seen, name)
			}
		}
	}
	config, entered, release := busy(p, w.config[3])
	defer release()
	publish(config, network.TCP, 8003, 21) // new in that Set, and gone before its end
	set := make(chan error, 1)
	go func() { set <- p.Set(t.Context(), config) }()
	<-entered
	less := config.Clone()
	for _, proto := range []network.Protocol{network.TCP, network.UDP} {
		publish(less, proto, 8000, 22)
		publish(less, proto, 8001)
	}
	publish(less, network.TCP, 8003)
	p.Narrow(less)
	ask("while a Set is under way")
	release()
	w.ok(<-set)
	ask("after it")
	if seen, name := w.query(w.hosts["out"], "tcp", "10.99.0.3:8003"); seen != "error" {
		t.Errorf("a task that was gone before its port was there: %s %s", seen, name)
	}
	w.ok(p.Set(t.Context(), less))
	ask("after the next")
	p.Narrow(config)
	ask("back in a config")
	w.ok(p.Set(t.Context(), config))
	got := map[string]bool{}
	for range 100 {
		_, name := w.query(w.hosts["out"], "tcp", "10.99.0.3:8000")
		got[name] = true
	}
	if !got["1"] || !got["2"] || len(got) != 2 {
		t.Errorf("back and set: %v", got)
	}
}

// The same for virtual addresses.
func TestNarrowVIPDuringSet(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(3)
		p.Narrow(c)
		w.ok(p.Set(t.Context(), c))
		w.names(p, 3)
		client := p.Path("client")
		ask := func(when string) {
			t.Helper()
			for _, vip := range []string{vip4 + ":80", "[" + vip6 + "]:80"} {
				if got := w.spread(client, vip, 20); got["server1"] != 20 {
					t.Fatalf("%s, %s: %v", when, vip, got)
				}
			}
		}
		config, entered, release := busy(p, c)
		defer release()
		delete(config.Sandboxes, "server0") // it has gone meanwhile
		set := make(chan error, 1)
		go func() { set <- p.Set(t.Context(), config) }()
		<-entered
		less := config.Clone()
		lead(less, "", netip.MustParseAddr("10.0.9.4"))
		lead(less, "", netip.MustParseAddr("fd09::4"))
		p.Narrow(less)
		ask("while a Set is under way")
		release()
		w.ok(<-set)
		ask("after it")
		p.stale.Store(true)
		w.ok(p.Set(t.Context(), config))
		ask("after a look")
		w.ok(p.Set(t.Context(), less))
		p.Narrow(c)
		ask("back in a config")
		w.ok(p.Set(t.Context(), c))
		if got := w.spread(client, vip4+":80", 60); got["server1"] == 0 || got["server2"] == 0 || got["server1"] == 60 {
			t.Errorf("back and set: %v", got)
		}
	})
}

// While sandboxes come and go in one Set after another, connections go to what the
// last narrowed config has, and all of them succeed.
func TestNarrowAmongSets(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		base := w.service(3)
		p.Narrow(base)
		w.ok(p.Set(t.Context(), base))
		w.names(p, 3)
		client := p.Path("client")
		stop := w.connecting(client, vip4+":80", true)
		configs := make(chan *network.Config, 100)
		sets := make(chan error, 1)
		go func() {
			var err error
			for c := range configs {
				if err == nil {
					err = p.Set(t.Context(), c)
				}
			}
			sets <- err
		}()
		var last *network.Config
		for i := range 24 {
			c := base.Clone()
			for j := range i % 4 {
				id := fmt.Sprintf("other%d", (i+j)%8)
				c.Sandboxes[id] = member9(id, 20+(i+j)%8)
			}
			var backends []netip.Addr
			want := []string{"server1"} // always there
			for j := range 3 {
				if j == 1 || i>>(j/2)&1 == 0 {
					backends = append(backends, netip.AddrFrom4([4]byte{10, 0, 9, byte(3 + j)}))
					want = append(want, fmt.Sprintf("server%d", j))
				}
			}
			lead(c, "", backends...)
			if i%7 == 3 {
				p.stale.Store(true)
			}
			p.Narrow(c)
			configs <- c
			for name, n := range w.spread(client, vip4+":80", 6) {
				if !slices.Contains(want, name) {
					t.Errorf("step %d: %d connections went to %s, not %v", i, n, name, want)
				}
			}
			last = c
		}
		close(configs)
		w.ok(<-sets)
		if n, err := stop(); err != nil {
			t.Errorf("one of %d connections: %v", n, err)
		}
		w.ok(p.Set(t.Context(), last))
		for name := range w.spread(client, vip4+":80", 40) {
			if name == "server0" || name == "server2" {
				t.Errorf("at last connections went to %s", name)
			}
		}
	})
}
