package network_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	dnet "github.com/moby/moby/api/types/network"
	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

// steppedPlane notes what each Set makes, and waits to be told to go on.
type steppedPlane struct {
	*networktest.Fake
	step  chan struct{}
	fresh []int // sandboxes that each Set makes
}

func (p *steppedPlane) Set(ctx context.Context, c *network.Config) error {
	if p.step != nil {
		<-p.step
	}
	p.fresh = append(p.fresh, len(network.Diff(p.There(), c).PutSandboxes))
	return p.Fake.Set(ctx, c)
}

// However many containers start at once, what changes meanwhile in names and
// backends waits for a few of them at most.
func TestManySandboxesAreMadeInPortions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &steppedPlane{Fake: networktest.NewFake()}
		n := newNode(t, func(o *network.Options) { o.Dataplane = p })
		n.fake = p.Fake
		n.create(dnet.CreateRequest{Name: "b1"})
		p.step, p.fresh = make(chan struct{}), nil
		var all errgroup.Group
		for i := range 50 {
			all.Go(func() error {
				_, err := n.Join(t.Context(), fmt.Sprintf("c%02d", i), in("b1"), ports("80/tcp", "", fmt.Sprint(8000+i)))
				return err
			})
		}
		synctest.Wait()
		for range 3 {
			p.step <- struct{}{}
			synctest.Wait()
		}
		if c := p.There(); len(c.Sandboxes) > 3*8 || len(c.Ports) != 2*len(c.Sandboxes) {
			t.Errorf("%d sandboxes, %d ports", len(c.Sandboxes), len(c.Ports))
		}
		close(p.step)
		if err := all.Wait(); err != nil {
			t.Fatal(err)
		}
		for _, many := range p.fresh {
			if many > 8 {
				t.Errorf("made at once: %v", p.fresh)
			}
		}
		if c := p.There(); len(c.Sandboxes) != 50 || len(c.Ports) != 100 {
			t.Errorf("%d sandboxes, %d ports", len(c.Sandboxes), len(c.Ports))
		}
	})
}

// A data plane that is stuck keeps no task from being stopped for long.
func TestDrainDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &steppedPlane{Fake: networktest.NewFake()}
		n := newNode(t, func(o *network.Options) { o.Dataplane = p })
		p.step = make(chan struct{})
		task := &api.Task{ID: "t", ServiceID: "s", Spec: &api.TaskSpec{}, Networks: []api.NetworkAttachment{{NetworkID: "net1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9.4/24")}}}}
		n.Announce("c1", task)
		n.Serve("c1", true)
		begin := time.Now()
		if was, err := n.Drain(t.Context(), "c1"); !was || err != nil || time.Since(begin) > 10*time.Second {
			t.Errorf("%v, %v after %v", was, err, time.Since(begin))
		}
		close(p.step)
		if err := n.Close(t.Context(), false); err != nil {
			t.Error(err)
		}
	})
}

// Neither do other nodes that say nothing, or that nobody can be asked for.
func TestWithdrawnDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		if err := n.Withdrawn(t.Context()); !api.Is(err, api.Unavailable) || err.Error() != "network: this node is part of no swarm" {
			t.Error(err)
		}
		n.SetSwarm(newManagers())
		begin := time.Now()
		if err := n.Withdrawn(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 4*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// What managers tell is acted on, as far as it takes something out, while a Set is
// under way; Applied returns then.
func TestAppliedWaitsForNoSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &steppedPlane{}
		n := &swarmNode{node: newNode(t, func(o *network.Options) {
			p.Fake = o.Dataplane.(*networktest.Fake)
			o.Dataplane = p
		})}
		n.run()
		defer func() { n.stop() }()
		n.told(api.NetworkUpdate{ID: "net1", Whole: true, PutServices: []api.OverlayService{vip("s1", "Web", "10.0.9.100")},
			Put: endpoints("t2 10.0.9.3 192.0.2.2 s1 Web.2.t2 serving", "t3 10.0.9.6 192.0.2.2 s1 Web.3.t3 serving")})
		n.runTask("c1", "s1", "10.0.9.4")
		n.runTask("c2", "s1", "10.0.9.5")
		p.step = make(chan struct{})
		var others errgroup.Group
		others.Go(func() error { return n.Leave(t.Context(), "c2") })
		synctest.Wait()
		n.Told(netip.MustParseAddr("192.0.2.1"), &api.OverlayUpdate{Networks: []api.NetworkUpdate{{ID: "net1", Put: endpoints("t2 10.0.9.3 192.0.2.2 s1 - -")}}})
		begin := time.Now()
		if err := n.Applied(t.Context()); err != nil || time.Since(begin) != 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		for k, b := range n.fake.There().Balancers {
			if len(b.Backends) != 1 || b.Backends[0].String() != "10.0.9.6" {
				t.Errorf("%v leads to %v", k, b.Backends)
			}
		}
		close(p.step)
		if err := others.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// Nor does it wait for a Set that is under way: what takes the task out is done
// beside it.
func TestDrainWaitsForNoSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &steppedPlane{}
		n := &swarmNode{node: newNode(t, func(o *network.Options) {
			p.Fake = o.Dataplane.(*networktest.Fake)
			o.Dataplane = p
		})}
		n.run()
		defer func() { n.stop() }()
		n.told(api.NetworkUpdate{ID: "net1", Whole: true, PutServices: []api.OverlayService{vip("s1", "Web", "10.0.9.100")}})
		n.runTask("c1", "s1", "10.0.9.4")
		n.runTask("c2", "s1", "10.0.9.5")
		n.Serve("c1", true)
		n.Serve("c2", true)
		n.is("both serve", "tasks.web 10.0.9.4 10.0.9.5", "web 10.0.9.100", "web.c1 10.0.9.4", "web.c2 10.0.9.5", "balancer 10.0.9.100 in net1 -> 10.0.9.4 10.0.9.5")
		p.step = make(chan struct{})
		var others errgroup.Group
		others.Go(func() error { return n.Leave(t.Context(), "c2") })
		synctest.Wait()
		begin := time.Now()
		if was, err := n.Drain(t.Context(), "c1"); !was || err != nil || time.Since(begin) != 0 {
			t.Errorf("%v, %v after %v", was, err, time.Since(begin))
		}
		n.is("while a Set is stuck", "tasks.web", "web 10.0.9.100", "balancer 10.0.9.100 in net1 ->")
		close(p.step)
		if err := others.Wait(); err != nil {
			t.Error(err)
		}
		n.is("after it", "tasks.web", "web 10.0.9.100", "balancer 10.0.9.100 in net1 ->")
	})
}
