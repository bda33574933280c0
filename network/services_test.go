package network_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dnet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

// swarmNode is a node of a swarm whose networks run.
type swarmNode struct {
	*node
	stop func()
	jobs bool // its tasks are jobs'
}

func newSwarmNode(t *testing.T) *swarmNode {
	n := &swarmNode{node: newNode(t)}
	n.run()
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *swarmNode) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = n.Run(ctx) })
	n.stop = func() {
		cancel()
		wg.Wait()
	}
}

// killed is kill -9 of the daemon, and its next start.
func (n *swarmNode) killed(keep ...string) {
	n.stop() // what it would have written then is written already
	n.restart(keep...)
	n.run()
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// endpoint reads "ID ADDRESS[,ADDRESS] NODE|- SERVICE|- NAME|- [serving]".
func endpoint(s string) api.OverlayEndpoint {
	f := strings.Fields(strings.ReplaceAll(s, " -", " .") + " .")
	e := api.OverlayEndpoint{ID: f[0], Addresses: addrs(strings.Split(f[1], ",")...), Service: strings.Trim(f[3], "."), Name: strings.Trim(f[4], "."), Serving: f[5] == "serving"}
	if f[2] != "." {
		e.Node = netip.MustParseAddr(f[2])
	}
	return e
}

func endpoints(list ...string) []api.OverlayEndpoint {
	var out []api.OverlayEndpoint
	for _, s := range list {
		out = append(out, endpoint(s))
	}
	return out
}

func vip(id, name, addr string, aliases ...string) api.OverlayService {
	return api.OverlayService{ID: id, Name: name, VirtualAddresses: addrs(addr), Aliases: aliases}
}

func (n *swarmNode) told(u ...api.NetworkUpdate) {
	n.Told(netip.MustParseAddr("192.0.2.1"), &api.OverlayUpdate{DataPort: 4789, Networks: u})
	synctest.Wait()
}

// runTask starts a task's container in net1.
func (n *swarmNode) runTask(id, service, addr string, aliases ...string) {
	n.t.Helper()
	release, err := n.Use([]*api.Network{overlayNetwork("net1", "back", "10.0.9.0/24")})
	if err != nil {
		n.t.Fatal(err)
	}
	defer release()
	t := &api.Task{ID: "task-" + id, ServiceID: service, Spec: &api.TaskSpec{}}
	t.Networks = []api.NetworkAttachment{{NetworkID: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix(addr + "/24")}}}
	if n.jobs {
		t.JobIteration = &swarm.Version{}
	}
	n.Announce(id, t)
	e := given(addr)
	e.Aliases, e.DNSNames = aliases, append([]string{"Web." + id}, append(aliases, id+"-short", "host-"+id)...)
	if _, err := n.Join(n.t.Context(), id, map[string]*dnet.EndpointSettings{"net1": e}, nil); err != nil {
		n.t.Fatal(err)
	}
	synctest.Wait()
}

// is compares what the data plane is for overlays with what it should be, a line
// each: peers, names, balancers, the mesh; not what the address is of that a
// container has for itself.
func (n *swarmNode) is(when string, want ...string) {
	n.t.Helper()
	synctest.Wait()
	c := n.fake.There()
	if err := c.Validate(); err != nil {
		n.t.Fatalf("%s: %v", when, err)
	}
	var have []string
	for line := range strings.SplitSeq(c.String(), "\n") {
		f := strings.Fields(line + " .")
		known := slices.Contains([]string{"peer", "balancer", "mesh", "mesh-port", "key"}, f[0]) || strings.HasPrefix(f[0], "web") || strings.HasPrefix(f[0], "tasks.") || f[0] == "www"
		if known && f[1] != "is" {
			have = append(have, strings.TrimSpace(line))
		}
	}
	if h, w := strings.Join(have, "\n"), strings.Join(want, "\n"); h != w {
		n.t.Errorf("%s:\n%s\nwant:\n%s\nall:\n%s", when, h, w, c)
	}
}

func web(t *testing.T) *swarmNode {
	n := newSwarmNode(t)
	n.told(api.NetworkUpdate{ID: "net1", Whole: true, PutServices: []api.OverlayService{vip("s1", "Web", "10.0.9.100", "www")},
		Put: endpoints("t2 10.0.9.3 192.0.2.2 s1 Web.2.t2 serving", "task-c1 10.0.9.4 - s1 -")})
	n.is("no container here")
	n.runTask("c1", "s1", "10.0.9.4", "www")
	return n
}

// A task is in the lists from when it can serve until it is to stop, whatever
// managers know of it, and found by its own names a little longer.
func TestTasksComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := web(t)
		others := []string{"peer 10.0.9.3 at 192.0.2.2", "tasks.web 10.0.9.3", "tasks.www 10.0.9.3", "web 10.0.9.100", "web.2.t2 10.0.9.3"}
		list := func(more ...string) []string { return append(slices.Clone(others), more...) }
		n.is("it starts", list("web.c1 10.0.9.4", "www 10.0.9.100", "balancer 10.0.9.100 in net1 -> 10.0.9.3")...)
		n.Serve("c1", true)
		both := []string{"peer 10.0.9.3 at 192.0.2.2", "tasks.web 10.0.9.3 10.0.9.4", "tasks.www 10.0.9.3 10.0.9.4", "web 10.0.9.100", "web.2.t2 10.0.9.3",
			"web.c1 10.0.9.4", "www 10.0.9.100", "balancer 10.0.9.100 in net1 -> 10.0.9.3 10.0.9.4"}
		n.is("it serves", both...)
		n.killed("c1")
		n.is("after kill -9, without a manager", both...)
		n.Serve("c1", false)
		n.is("not ready", list("web.c1 10.0.9.4", "www 10.0.9.100", "balancer 10.0.9.100 in net1 -> 10.0.9.3")...)
		n.Serve("c1", true)
		if was, err := n.Drain(t.Context(), "c1"); !was || err != nil {
			t.Error(was, err)
		}
		drained := list("www 10.0.9.100", "balancer 10.0.9.100 in net1 -> 10.0.9.3")
		n.is("it drains", drained...)
		if n.Serve("c1", true); n.fake.There().Sandboxes["c1"] == nil {
			t.Error("what drains has lost its network")
		}
		n.is("it drains still", drained...)
		n.killed("c1")
		if was, err := n.Drain(t.Context(), "c1"); was || err != nil {
			t.Errorf("drained twice: %v, %v", was, err)
		}
		n.is("it drains after kill -9", drained...)
		if err := n.Leave(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		n.is("the last container has left")
	})
}

// What ends without being told to leaves the lists as it leaves its networks.
func TestCrashedTaskIsInNoList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := web(t)
		n.runTask("c5", "s1", "10.0.9.5")
		n.Serve("c1", true)
		n.Serve("c5", true)
		synctest.Wait()
		if err := n.Leave(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		n.is("at once", "peer 10.0.9.3 at 192.0.2.2", "tasks.web 10.0.9.3 10.0.9.5", "tasks.www 10.0.9.3 10.0.9.5", "web 10.0.9.100",
			"web.2.t2 10.0.9.3", "web.c5 10.0.9.5", "www 10.0.9.100", "balancer 10.0.9.100 in net1 -> 10.0.9.3 10.0.9.5")
		n.Serve("c1", true) // too late
		n.killed("c5")
		if b := n.fake.There().Balancers[network.BalancerKey{Network: "net1", Address: netip.MustParseAddr("10.0.9.100")}]; len(b.Backends) != 2 {
			t.Error(b)
		}
	})
}

// Nobody is sent to a job's task, so it is not drained either; it is found by name.
func TestJobIsInNoList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSwarmNode(t)
		n.jobs = true
		n.told(api.NetworkUpdate{ID: "net1", Whole: true, Put: endpoints("task-c1 10.0.9.4 - s1 Web.c1")})
		n.runTask("c1", "s1", "10.0.9.4", "www")
		n.Serve("c1", true)
		n.is("it runs", "web.c1 10.0.9.4")
		if was, err := n.Drain(t.Context(), "c1"); was || err != nil {
			t.Error(was, err)
		}
	})
}

// Changes of services and of endpoints elsewhere, and nothing at all while no
// manager answers.
func TestManagersSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := web(t)
		n.told(api.NetworkUpdate{ID: "net1", Put: endpoints("t3 10.0.9.7,fd00::7 192.0.2.3 s1 Web.3.t3 serving", "t2 10.0.9.3 192.0.2.2 s1 -")})
		n.is("scaled and drained", "peer 10.0.9.3 at 192.0.2.2", "peer 10.0.9.7 fd00::7 at 192.0.2.3", "tasks.web 10.0.9.7 fd00::7", "tasks.www 10.0.9.7 fd00::7", "web 10.0.9.100",
			"web.3.t3 10.0.9.7 fd00::7", "web.c1 10.0.9.4", "www 10.0.9.100", "balancer 10.0.9.100 in net1 -> 10.0.9.7")
		n.told(api.NetworkUpdate{ID: "net1", Remove: []string{"t2", "never heard of"}, RemoveServices: []string{"s1"}, PutServices: []api.OverlayService{{ID: "s2", Name: "web2"}}})
		n.is("the service is removed, another one has no virtual address and no task", "peer 10.0.9.7 fd00::7 at 192.0.2.3", "tasks.web2", "web.3.t3 10.0.9.7 fd00::7", "web.c1 10.0.9.4", "web2")
		n.told(api.NetworkUpdate{ID: "net1", Put: endpoints("t9 10.0.9.9 192.0.2.3 s2 web2.1.t9 serving"), PutServices: []api.OverlayService{{ID: "s2", Name: "web2", Balance: "client", VirtualAddresses: addrs("10.0.9.101", "fd00::101")}}})
		last := []string{"peer 10.0.9.7 fd00::7 at 192.0.2.3", "peer 10.0.9.9 at 192.0.2.3", "tasks.web2 10.0.9.9", "web.3.t3 10.0.9.7 fd00::7", "web.c1 10.0.9.4",
			"web2 10.0.9.101 fd00::101", "web2.1.t9 10.0.9.9", "balancer 10.0.9.101 in net1 client -> 10.0.9.9", "balancer fd00::101 in net1 client ->"}
		n.is("it has virtual addresses", last...)
		time.Sleep(time.Hour)
		n.is("an hour without a manager", last...)
		n.killed("c1")
		n.is("after kill -9 without a manager", last...)
		if o := n.fake.There().Overlays["net1"]; !o.Unknown {
			t.Error("where endpoints are is only known from before")
		}
		n.Told(netip.MustParseAddr("192.0.2.1"), &api.OverlayUpdate{Complete: true, DataPort: 4789})
		n.is("the managers know nothing of it: what was made stays, as tunnels do", "web.c1 10.0.9.4", "balancer 10.0.9.101 in net1 client -> 10.0.9.9", "balancer fd00::101 in net1 client ->")
	})
}

// A host name or alias that tasks share with a service is the service's alone;
// containers that are of no service have all their names.
func TestWhoseNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := web(t)
		e := endpoint("t4 10.0.9.8 192.0.2.2 s1 Web.4.t4 serving")
		e.Aliases = []string{"WEB", "web-four"}
		n.told(api.NetworkUpdate{ID: "net1", Put: []api.OverlayEndpoint{e, endpoint("c8 10.0.9.9 192.0.2.2 - webcontainer serving")}})
		n.is("names", "peer 10.0.9.3 at 192.0.2.2", "peer 10.0.9.8 at 192.0.2.2", "peer 10.0.9.9 at 192.0.2.2", "tasks.web 10.0.9.3 10.0.9.8", "tasks.www 10.0.9.3 10.0.9.8",
			"web 10.0.9.100", "web-four 10.0.9.8", "web.2.t2 10.0.9.3", "web.4.t4 10.0.9.8", "web.c1 10.0.9.4", "webcontainer 10.0.9.9", "www 10.0.9.100",
			"balancer 10.0.9.100 in net1 -> 10.0.9.3 10.0.9.8")
		z := n.fake.There().Zones["net1"]
		for addr, owner := range map[string]string{"10.0.9.100": "Web.back", "10.0.9.8": "Web.4.t4.back", "10.0.9.9": "webcontainer.back", "10.0.9.4": "Web.c1.back"} {
			if got := z.Owners[netip.MustParseAddr(addr)]; got != owner {
				t.Errorf("%s is %q, want %q", addr, got, owner)
			}
		}
		if got := n.fake.There().Sandboxes["c1"].Resolver; got == nil || !slices.Equal(got.Zones, []string{"net1"}) {
			t.Error(got)
		}
	})
}

func ingressNetwork() *api.Network {
	o := overlayNetwork("ing", "ingress", "10.0.0.0/24")
	o.Spec.Ingress = true
	o.DriverState.Options[api.OptionVNIs] = "4096"
	return o
}

// A node without any task answers for published ports, as long as it is in the
// swarm, also after kill -9 without a manager.
func TestMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSwarmNode(t)
		own := []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}
		s := vip("s1", "web", "10.0.0.100")
		s.Ports = []api.OverlayPort{{Protocol: "tcp", Published: 8080, Target: 80}, {Protocol: "udp", Published: 53, Target: 53, On: []string{"192.0.2.0/24", "eth0", "?!"}}, {Protocol: "icmp", Published: 1, Target: 1}}
		n.told(api.NetworkUpdate{ID: "ing", Whole: true, Ingress: ingressNetwork(), PutServices: []api.OverlayService{s},
			Put: endpoints("n2 10.0.0.3 192.0.2.2 - -", "t2 10.0.0.4 192.0.2.2 s1 web.1.t2 serving")})
		n.is("no address yet", "peer 10.0.0.3 at 192.0.2.2", "peer 10.0.0.4 at 192.0.2.2")
		n.told(api.NetworkUpdate{ID: "ing", Ingress: ingressNetwork(), Own: own})
		want := []string{"peer 10.0.0.3 at 192.0.2.2", "peer 10.0.0.4 at 192.0.2.2", "mesh ing 10.0.0.2/24", "mesh-port tcp 8080 -> 80 at 10.0.0.4",
			"mesh-port udp 53 on 192.0.2.0/24 on eth0 on ?! -> 53 at 10.0.0.4"}
		n.is("all", want...)
		if _, err := n.Join(t.Context(), "c9", in("bridge"), ports("80/tcp", "", "8080")); !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "port is already allocated (tcp, by service web, on every node)") {
			t.Errorf("a port of the mesh: %v", err)
		}
		gateway, err := n.Inspect("docker_gwbridge")
		if err != nil || n.fake.There().Bridges["br-"+gateway.ID[:12]] == nil {
			t.Errorf("a node of a swarm has %+v, %v", gateway, err)
		}
		if err := n.Remove(t.Context(), "docker_gwbridge"); err != nil {
			t.Error(err)
		}
		n.told(api.NetworkUpdate{ID: "ing", Ingress: ingressNetwork(), Own: own})
		n.is("the same again", want...)
		if _, err := n.Inspect("docker_gwbridge"); !api.Is(err, api.NotFound) {
			t.Errorf("what a user removed is back: %v", err)
		}
		if err := n.Close(t.Context(), true); !api.Is(err, api.Conflict) {
			t.Errorf("all would be removed: %v", err)
		}
		n.killed()
		n.is("after kill -9", want...)
		again := ingressNetwork()
		again.ID = "ing2"
		n.Told(netip.MustParseAddr("192.0.2.1"), &api.OverlayUpdate{Complete: true, DataPort: 4789, Networks: []api.NetworkUpdate{{ID: "ing2", Whole: true, Ingress: again, Own: own}}})
		n.is("another ingress network", "mesh ing2 10.0.0.2/24")
		n.ForgetSwarm()
		n.is("out of the swarm")
		if c := n.fake.There(); len(c.Overlays) != 0 || c.Underlay.Port != 0 {
			t.Errorf("left:\n%s", c)
		}
		n.killed()
		n.is("for good")
	})
}

func TestKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSwarmNode(t)
		tell := func(send uint32, ids ...uint32) {
			k := &api.OverlayKeys{Send: send}
			for _, id := range ids {
				k.Keys = append(k.Keys, api.OverlayKey{ID: id, Secret: [32]byte{byte(id)}})
			}
			n.Told(netip.Addr{}, &api.OverlayUpdate{Keys: k})
		}
		tell(2, 3, 2, 1)
		n.is("told", "key 1", "key 2 sends", "key 3")
		n.told()
		n.killed()
		n.is("kept", "key 1", "key 2 sends", "key 3")
		if k := n.fake.There().Keys.All; k[2].Secret != [32]byte{3} {
			t.Error("another secret")
		}
		tell(7, 3, 2)
		n.is("none to send with: then none at all")
	})
}

// What managers say is bounded, and what is left out is not half known.
func TestToldTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSwarmNode(t)
		e := endpoint("t 10.0.9.3 192.0.2.2 - - serving")
		e.Aliases = make([]string, network.MaxTold/2)
		f := e
		f.ID = "u"
		n.told(api.NetworkUpdate{ID: "net1", Whole: true, Put: []api.OverlayEndpoint{e, f}})
		n.runTask("c1", "s1", "10.0.9.4")
		if o := n.fake.There().Overlays["net1"]; len(o.Peers) != 1 {
			t.Errorf("%d peers", len(o.Peers))
		}
		n.told(api.NetworkUpdate{ID: "net1", Put: []api.OverlayEndpoint{e}}, api.NetworkUpdate{ID: "net1", Remove: []string{"t"}, Put: []api.OverlayEndpoint{f}})
		if o := n.fake.There().Overlays["net1"]; len(o.Peers) != 1 {
			t.Errorf("%d peers", len(o.Peers))
		}
	})
}
