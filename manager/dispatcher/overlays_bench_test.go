package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

type nodeKey struct{}

// ear is a node that hears of endpoints.
type ear struct {
	grpc.ServerStream
	ctx   context.Context //nolint:containedctx // a stream's
	heard chan *swarmpb.EndpointsUpdate
	bytes int // of the last message
	addr  string
}

func (e *ear) Context() context.Context { return e.ctx }

func (e *ear) Send(m *swarmpb.EndpointsUpdate) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	e.bytes = len(b)
	select {
	case e.heard <- m:
		return nil
	case <-e.ctx.Done():
		return e.ctx.Err()
	}
}

// audience is a swarm in which every node has tasks of one service in one network,
// and hears of it.
type audience struct {
	d    *Dispatcher
	ears []*ear
}

func newAudience(t testing.TB, nodes, tasks int, c swarm.ContainerSpec) *audience {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d, err := New(Config{
		Store: newStore(t), Node: "m", Log: slog.New(slog.DiscardHandler),
		Peer: func(ctx context.Context) (ca.Identity, string, bool) {
			id, ok := ctx.Value(nodeKey{}).(string)
			return ca.Identity{NodeID: id}, "", ok
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	update(t, d.cfg.Store, func(tx *store.Tx) error { return populate(tx, nodes, tasks, c) })
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	view, w := d.cfg.Store.Watch(store.KindTask, store.KindNode, store.KindService, store.KindNetwork)
	d.resync(view)
	wg.Go(func() { _ = d.follow(ctx, w) })
	a := &audience{d: d}
	for i := range nodes {
		e := &ear{ctx: context.WithValue(ctx, nodeKey{}, fmt.Sprint("n", i)), addr: fmt.Sprintf("192.0.2.%d", i), heard: make(chan *swarmpb.EndpointsUpdate, 1)}
		a.ears = append(a.ears, e)
		wg.Go(func() { _ = d.Endpoints(&swarmpb.EndpointsRequest{DataAddr: e.addr}, e) })
	}
	for _, e := range a.ears {
		for (<-e.heard).GetMore() { //nolint:revive // until all is told
		}
	}
	return a
}

func populate(tx *store.Tx, nodes, tasks int, c swarm.ContainerSpec) error {
	for i := range nodes {
		n := &api.Node{}
		n.ID, n.DataAddr = fmt.Sprint("n", i), fmt.Sprintf("192.0.2.%d", i)
		if err := store.Create(tx, n); err != nil {
			return err
		}
	}
	s := &api.Service{}
	s.ID, s.Spec.Name = "web", "web"
	s.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "net"}}
	s.Endpoint.VirtualIPs = []swarm.EndpointVirtualIP{{NetworkID: "net", Addr: netip.MustParsePrefix("10.0.255.1/16")}}
	spec := s.TaskSpec()
	spec.ContainerSpec = &c
	for i := range tasks {
		t := &api.Task{
			ID: fmt.Sprintf("%025d", i), ServiceID: "web", Slot: i + 1, NodeID: fmt.Sprint("n", i%nodes), SpecVersion: 1, Spec: spec,
			Status: swarm.TaskStatus{State: swarm.TaskStateRunning}, DesiredState: swarm.TaskStateRunning,
			Networks: []api.NetworkAttachment{{NetworkID: "net", Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i%250 + 1)}), 16)}}},
		}
		if err := store.Create(tx, t); err != nil {
			return err
		}
	}
	return store.Create(tx, s)
}

// flip has a task stop or begin to serve.
func (a *audience) flip(t testing.TB, task string) {
	update(t, a.d.cfg.Store, func(tx *store.Tx) error {
		u := *store.Get[*api.Task](tx, task)
		if u.Status.Err = ""; api.Ready(store.Get[*api.Task](tx, task)) {
			u.Status.Err = api.NotReady("")
		}
		return store.Put(tx, &u)
	})
}

// What a change costs on the wire depends on the change alone, for each node.
func TestOneChangeIsToldAsOne(t *testing.T) {
	a := newAudience(t, 10, 2000, swarm.ContainerSpec{})
	a.flip(t, fmt.Sprintf("%025d", 7))
	for i, e := range a.ears {
		m := <-e.heard
		n := m.GetNetworks()
		if len(n) != 1 || len(n[0].GetPut()) != 1 || n[0].GetWhole() || n[0].GetPut()[0].GetServing() || len(n[0].GetPutServices())+len(n[0].GetRemove()) != 0 || e.bytes > 128 {
			t.Fatalf("node %d is told in %d bytes: %.999s", i, e.bytes, m)
		}
		if own := n[0].GetPut()[0].GetNodeAddr() == ""; own != (i == 7) {
			t.Errorf("node %d: %v", i, n[0].GetPut()[0])
		}
	}
	update(t, a.d.cfg.Store, func(tx *store.Tx) error {
		s := *store.Get[*api.Service](tx, "web")
		s.Endpoint.VirtualIPs = []swarm.EndpointVirtualIP{{NetworkID: "net", Addr: netip.MustParsePrefix("10.0.255.2/16")}}
		return store.Put(tx, &s)
	})
	for i, e := range a.ears {
		m := <-e.heard
		if n := m.GetNetworks(); len(n) != 1 || len(n[0].GetPut()) != 0 || len(n[0].GetPutServices()) != 1 || n[0].GetPutServices()[0].GetVirtualAddresses()[0] != "10.0.255.2" {
			t.Errorf("node %d is told %v", i, m)
		}
	}
}

// A manager that has just started tells nothing before it knows which network is
// that of the routing mesh: what it tells first is taken for all there is.
func TestFirstIsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		d, err := New(Config{Store: newStore(t), Node: "m", Log: slog.New(slog.DiscardHandler), Peer: func(context.Context) (ca.Identity, string, bool) { return ca.Identity{NodeID: "n0"}, "", true }})
		if err != nil {
			t.Fatal(err)
		}
		update(t, d.cfg.Store, func(tx *store.Tx) error {
			o := &api.Network{}
			o.ID, o.Spec.Name, o.Spec.Ingress = "ing", "ingress", true
			if err := store.Create(tx, o); err != nil {
				return err
			}
			return populate(tx, 1, 0, swarm.ContainerSpec{})
		})
		if err := d.noteDataAddr(ctx, "n0", "nonsense"); !api.Is(err, api.Invalid) {
			t.Error(err)
		}
		e := &ear{ctx: ctx, addr: "192.0.2.0", heard: make(chan *swarmpb.EndpointsUpdate, 9)}
		done := make(chan struct{})
		go func() { defer close(done); _ = d.Endpoints(&swarmpb.EndpointsRequest{DataAddr: e.addr}, e) }()
		synctest.Wait()
		if len(e.heard) > 0 {
			t.Errorf("told %v", <-e.heard)
		}
		d.resync(d.cfg.Store.View())
		synctest.Wait()
		if m := <-e.heard; !m.GetComplete() || len(m.GetNetworks()) != 1 || m.GetNetworks()[0].GetNetwork().GetId() != "ing" {
			t.Errorf("told %v", m)
		}
		cancel()
		<-done
	})
}

// BenchmarkEndpointChange is from the write of one task's change until the last of
// 100 nodes has the message, beside the same with a tenth of the endpoints, and with
// names that are made from templates.
func BenchmarkEndpointChange(b *testing.B) {
	for _, c := range []struct {
		tasks    int
		hostname string
	}{{500, ""}, {5000, ""}, {5000, "{{.Service.Name}}-{{.Task.Slot}}"}} {
		b.Run(fmt.Sprint(c.tasks, "-endpoints", map[bool]string{true: "-templated"}[c.hostname != ""]), func(b *testing.B) {
			a := newAudience(b, 100, c.tasks, swarm.ContainerSpec{Hostname: c.hostname})
			b.ReportAllocs()
			var took []time.Duration
			bytes := 0
			for i := 0; b.Loop(); i++ {
				begin := time.Now()
				a.flip(b, fmt.Sprintf("%025d", i%c.tasks))
				for _, e := range a.ears {
					<-e.heard
					bytes += e.bytes
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
			b.ReportMetric(float64(bytes)/float64(len(took)*len(a.ears)), "bytes/node")
		})
	}
}
