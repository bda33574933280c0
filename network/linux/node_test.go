package linux

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/network"
)

// node is network.Networks on a real data plane.
func (w *world) node(p *Plane, change ...func(*network.Options)) *network.Networks {
	w.t.Helper()
	o := network.Options{
		Dataplane: p, Dir: filepath.Join(w.dir, "data"), RuntimeDir: filepath.Join(w.dir, "run"), Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&o)
	}
	n, err := network.New(w.t.Context(), o)
	w.ok(err)
	return n
}

func TestNode(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	n := w.node(p)
	w.ok(n.Keep(t.Context(), nil))
	const count = 50
	joined := make([]*network.Joined, count)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			port := dnet.PortMap{dnet.MustParsePort("80/tcp"): {{HostPort: fmt.Sprint(8000 + i)}}}
			var err error
			if joined[i], err = n.Join(t.Context(), fmt.Sprintf("c%d", i), map[string]*dnet.EndpointSettings{"bridge": nil}, port); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d joins in %v", count, time.Since(start))
	if t.Failed() {
		return
	}
	w.serve(joined[7].Path, ":80")
	if got := w.ask(w.outside, "10.99.0.1:8007"); got != "10.99.0.2" {
		t.Errorf("a published port answers %q", got)
	}

	// The daemon is killed, with a connection under way, and a container ends meanwhile.
	w.kill(p)
	keep := []string{"c7", "c8"}
	p2 := w.plane("")
	n2 := w.node(p2)
	w.ok(n2.Keep(t.Context(), keep))
	entries, err := os.ReadDir(p2.dir)
	w.ok(err)
	if len(entries) != len(keep) {
		t.Errorf("%d namespaces for %d containers", len(entries), len(keep))
	}
	if got := w.ask(w.outside, "10.99.0.1:8007"); got != "10.99.0.2" {
		t.Errorf("after a restart a published port answers %q", got)
	}
	c, err := n2.Counters(t.Context(), "c7")
	if err != nil || len(c) != 1 || c[0].RxPackets == 0 || c[0].TxPackets == 0 {
		t.Errorf("counters %+v, %v", c, err)
	}
	for _, id := range keep {
		w.ok(n2.Leave(t.Context(), id))
	}
	w.ok(n2.Close(t.Context(), true))
	w.in(w.host, func() {
		if _, err := net.InterfaceByName("legion0"); err == nil {
			t.Error("the bridge is left")
		}
	})
}

// A container changes networks while it runs.
func TestConnect(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	n := w.node(p)
	w.ok(n.Keep(t.Context(), nil))
	_, err := n.Create(t.Context(), &dnet.CreateRequest{Name: "web", IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{{Subnet: netip.MustParsePrefix("10.5.0.0/24")}}}})
	w.ok(err)
	_, err = n.Create(t.Context(), &dnet.CreateRequest{Name: "inside", Internal: true})
	w.ok(err)
	nets := func(l ...string) map[string]*dnet.EndpointSettings {
		m := map[string]*dnet.EndpointSettings{}
		for _, s := range l {
			m[s] = nil
		}
		return m
	}
	a, err := n.Join(t.Context(), "a", nets("web"), nil)
	w.ok(err)
	b, err := n.Join(t.Context(), "b", nets("inside"), nil)
	w.ok(err)
	other, err := n.Join(t.Context(), "c", nets("bridge"), nil)
	w.ok(err)
	w.serve(a.Path, ":80")
	w.serve(b.Path, ":80")
	w.serve(other.Path, ":80")
	w.serve(w.outside, ":9000")
	expect := func(what, from, to, want string) {
		t.Helper()
		if got := w.ask(from, to); got != want {
			t.Errorf("%s: the server saw %q, not %q", what, got, want)
		}
	}
	inside := b.Endpoints["inside"].IPAddress.String() + ":80"
	expect("the world, from an internal network", b.Path, "10.99.0.2:9000", "error")
	expect("an internal network, from another", a.Path, inside, "error")
	expect("a network, from another", a.Path, other.Endpoints["bridge"].IPAddress.String()+":80", "error")
	expect("the world", a.Path, "10.99.0.2:9000", "10.99.0.1")
	e, err := n.Connect(t.Context(), "a", "inside", nil)
	w.ok(err)
	expect("an internal network, connected", a.Path, inside, e.IPAddress.String())
	expect("the world still", a.Path, "10.99.0.2:9000", "10.99.0.1")
	w.ok(n.Disconnect(t.Context(), "a", "web", false))
	expect("the world, disconnected", a.Path, "10.99.0.2:9000", "error")
	expect("an internal network still", a.Path, inside, e.IPAddress.String())
	for _, id := range []string{"a", "b", "c"} {
		w.ok(n.Leave(t.Context(), id))
	}
}
