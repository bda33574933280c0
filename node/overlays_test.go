package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dnet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

// wiredNode is a node whose tasks are in networks, on a data plane in memory.
type wiredNode struct {
	*testNode
	plane *networktest.Fake
	nets  *network.Networks
	// stopping is told of each task that is stopped, when it is.
	stopping func(addr netip.Addr)
}

func newWiredNode(t *testing.T) *wiredNode {
	n := &wiredNode{testNode: newTestNode(t, nil), plane: networktest.NewFake(), stopping: func(netip.Addr) {}}
	dir := t.TempDir()
	var err error
	n.nets, err = network.New(t.Context(), network.Options{
		Dataplane: n.plane, Dir: dir + "/network", RuntimeDir: dir + "/run", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = n.nets.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	n.networks, n.exec = n.nets, &wiredExecutor{Executor: n.fake, n: n}
	return n
}

// wiredExecutor gives tasks of another one their networks, as the real one does.
type wiredExecutor struct {
	exec.Executor
	n *wiredNode
}

func (e *wiredExecutor) Controller(t *api.Task, deps exec.Dependencies) (exec.Controller, error) {
	c, err := e.Executor.Controller(t, deps)
	return &wiredController{Controller: c, n: e.n, t: t, deps: deps}, err
}

type wiredController struct {
	exec.Controller
	n    *wiredNode
	t    *api.Task
	deps exec.Dependencies
}

func (c *wiredController) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			c.n.t.Logf("task %s can't be started: %v", c.t.ID, err)
		}
	}()
	eps := map[string]*dnet.EndpointSettings{}
	var nets []*api.Network
	for _, a := range c.t.Networks {
		o, _ := c.deps.Network(a.NetworkID)
		nets = append(nets, o)
		eps[a.NetworkID] = &dnet.EndpointSettings{IPAMConfig: &dnet.EndpointIPAMConfig{IPv4Address: a.Addresses[0].Addr()}, DNSNames: []string{c.t.Name()}}
	}
	release, err := c.n.nets.UseFor(c.t.ID, nets)
	if err != nil {
		return err
	}
	defer release()
	c.n.nets.Announce(c.t.ID, c.t)
	if _, err := c.n.nets.Join(ctx, c.t.ID, eps, nil); err != nil {
		return err
	}
	if err := c.Controller.Start(ctx); err != nil {
		return err
	}
	c.n.nets.Serve(c.t.ID, true)
	return nil
}

func (c *wiredController) Shutdown(ctx context.Context) error {
	if was, err := c.n.nets.Drain(ctx, c.t.ID); err != nil {
		return err
	} else if was {
		if !pause(ctx, api.DefaultDrainDelay) {
			return ctx.Err()
		}
		c.n.stopping(c.t.Networks[0].Addresses[0].Addr())
	}
	if err := c.Controller.Shutdown(ctx); err != nil {
		return err
	}
	return c.n.nets.Leave(ctx, c.t.ID)
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// awaits waits until a node's data plane is as wanted.
func (n *wiredNode) awaits(what string, cond func(*network.Config) bool) {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(n.plane.There()); {
		if time.Now().After(deadline) {
			n.t.Fatalf("never: %s:\n%s", what, n.plane.There())
		}
		pause(n.t.Context(), 5*time.Millisecond)
	}
}

// What managers and nodes tell each other, from end to end: a service's tasks on two
// nodes are in the names, balancers and ports of both, and leave them everywhere
// before they are stopped.
func TestServiceAcrossNodes(t *testing.T) {
	m, w := newWiredNode(t), newWiredNode(t)
	m.init()
	w.join(m.testNode)
	m.untilNode(w.id(), is(swarm.NodeStateReady))
	r, err := m.leading()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.control.NetworkCreate(t.Context(), &dnet.CreateRequest{Name: "back", Driver: "overlay"}); err != nil {
		t.Fatal(err)
	}
	s := spec("web", 2)
	s.Labels = map[string]string{"legion.network.balance": "least"}
	s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back", Aliases: []string{"www"}}}
	s.TaskTemplate.Placement = &swarm.Placement{MaxReplicas: 1}
	s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080}}}
	m.create(s)
	key := network.MeshKey{Protocol: network.TCP, Port: 8080}
	serving := func(count int) func(c *network.Config) bool {
		return func(c *network.Config) bool {
			p := c.MeshPorts[key]
			return p != nil && len(p.Backends) == count && p.Target == 80 && c.Mesh != nil && p.Balance == network.BalanceLeast
		}
	}
	for _, n := range []*wiredNode{m, w} {
		n.awaits("two backends of a port, a name and a virtual address", func(c *network.Config) bool {
			for _, z := range c.Zones {
				for _, b := range c.Balancers {
					www := z.Names["www"]
					return serving(2)(c) && z.Name == "back" && len(z.Names["tasks.web"]) == 2 && len(www) == 1 && www[0] == b.Address && slices.Equal(b.Backends, z.Names["tasks.web"])
				}
			}
			return false
		})
		if c := n.plane.There(); len(c.Overlays) != 2 || c.Validate() != nil {
			t.Errorf("%s", c)
		}
	}
	stopped := make(chan string, 2)
	for _, n := range []*wiredNode{m, w} {
		n.stopping = func(a netip.Addr) {
			said := fmt.Sprint(a, " is stopped")
			for _, o := range []*wiredNode{m, w} {
				c := o.plane.There()
				listed := !serving(1)(c)
				for _, z := range c.Zones {
					listed = listed || slices.Contains(z.Names["tasks.web"], a)
				}
				for _, b := range c.Balancers {
					listed = listed || slices.Contains(b.Backends, a)
				}
				if listed {
					said += fmt.Sprint(" while it is in a list:\n", c)
				}
			}
			stopped <- said
		}
	}
	m.change("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = new(uint64(1)) })
	if said := <-stopped; strings.Contains(said, "while") {
		t.Error(said)
	}
	if err := m.ServiceRemove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*wiredNode{m, w} {
		n.awaits("the end of the service", func(c *network.Config) bool {
			return len(c.MeshPorts)+len(c.Balancers)+len(c.Sandboxes) == 0 && c.Mesh != nil
		})
	}
	if err := w.SwarmLeave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	w.awaits("the end of the mesh", func(c *network.Config) bool { return c.Mesh == nil && len(c.Overlays) == 0 })
}

// A swarm whose address pool the host's routes cover is refused at once, in words,
// and leaves nothing; with another pool it begins.
func TestInitWithoutRoomForTheMesh(t *testing.T) {
	n := newWiredNode(t)
	n.plane.SetHost(network.Host{MTU: 1400, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	r := &swarm.InitRequest{ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1"}
	_, err := n.SwarmInit(t.Context(), r)
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "routes of this manager's host (10.0.0.0/8); give the swarm another pool (docker swarm init --default-addr-pool)") {
		t.Fatal(err)
	}
	if state, err := n.state(); state != swarm.LocalNodeStateInactive || err != nil {
		t.Fatal(state, err)
	}
	r.DefaultAddrPool = []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")}
	if _, err := n.SwarmInit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}
