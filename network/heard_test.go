package network_test

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// A worker shows of a network what a manager does, as far as it was told.
func TestInspectShowsWhatManagersTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSwarmNode(t)
		published := vip("s1", "web", "10.0.0.100")
		published.Ports = []api.OverlayPort{{Protocol: "tcp", Published: 8080, Target: 80}}
		n.told(
			api.NetworkUpdate{ID: "ing", Whole: true, Ingress: ingressNetwork(), Own: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
				PutServices: []api.OverlayService{published}, Put: endpoints("node-of-twelve-letters 10.0.0.3 192.0.2.2 - -")},
			api.NetworkUpdate{ID: "net1", Whole: true, PutServices: []api.OverlayService{vip("s1", "web", "10.0.9.100"), vip("s2", "idle", "10.0.9.101")},
				Put: endpoints("t1 10.0.9.4 - s1 web.1.t1 serving", "t2 10.0.9.5 192.0.2.2 s1 web.2.t2", "t3 10.0.9.6 192.0.2.3 s1 -", "a1 10.0.9.7 192.0.2.3 - tool")})
		n.runTask("c1", "s1", "10.0.9.4")
		in, err := n.Inspect("back")
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddr
		if d := cmp.Diff([]dnet.PeerInfo{{Name: "192.0.2.1", IP: at("192.0.2.1")}, {Name: "node-of-twel", IP: at("192.0.2.2")}, {Name: "192.0.2.3", IP: at("192.0.2.3")}}, in.Peers, addrEqual()); d != "" {
			t.Error("peers:", d)
		}
		services, err := n.Services("back")
		if err != nil {
			t.Fatal(err)
		}
		task := func(name, id, addr, host string) dnet.Task {
			return dnet.Task{Name: name, EndpointID: id, EndpointIP: at(addr), Info: map[string]string{"Host IP": host}}
		}
		want := map[string]dnet.ServiceInfo{
			"web":  {VIP: at("10.0.9.100"), Ports: []string{"Target: 80, Publish: 8080"}, Tasks: []dnet.Task{task("web.1.t1", "t1", "10.0.9.4", "192.0.2.1"), task("web.2.t2", "t2", "10.0.9.5", "192.0.2.2")}},
			"idle": {VIP: at("10.0.9.101"), Ports: []string{}, Tasks: []dnet.Task{}},
			"":     {Ports: []string{}, Tasks: []dnet.Task{task("tool", "a1", "10.0.9.7", "192.0.2.3")}},
		}
		if d := cmp.Diff(want, services, addrEqual()); d != "" {
			t.Error("services:", d)
		}
		if l, err := n.Services("bridge"); err != nil || l != nil {
			t.Errorf("of the node's own: %v, %v", l, err)
		}
		if _, err := n.Services("nosuch"); !api.Is(err, api.NotFound) {
			t.Error(err)
		}
	})
}

func addrEqual() cmp.Option { return cmp.Comparer(func(a, b netip.Addr) bool { return a == b }) }
