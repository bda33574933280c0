package dispatcher

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/allocator"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

type callerKey struct{}

func as(ctx context.Context, node string) context.Context {
	return context.WithValue(ctx, callerKey{}, node)
}

// newAttachments returns the service with nodes n1 and n2, the attachable network
// web and the other one closed, and the allocator at work.
func newAttachments(t *testing.T) *attachments {
	t.Helper()
	st := newStore(t)
	d, err := New(Config{Store: st, Node: "m", Log: slog.New(slog.DiscardHandler), Peer: func(ctx context.Context) (ca.Identity, string, bool) {
		id, ok := ctx.Value(callerKey{}).(string)
		return ca.Identity{NodeID: id}, "", ok
	}})
	if err != nil {
		t.Fatal(err)
	}
	update(t, st, func(tx *store.Tx) error {
		for _, id := range []string{"n1", "n2"} {
			n := &api.Node{}
			n.ID = id
			if err := store.Create(tx, n); err != nil {
				return err
			}
		}
		for name, sub := range map[string]string{"web": "10.1.0.0/29", "closed": "10.2.0.0/24"} {
			n := &api.Network{}
			n.ID, n.Spec.Name, n.Spec.Attachable = "id-of-"+name, name, name == "web"
			p := netip.MustParsePrefix(sub)
			n.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: p, Gateway: p.Addr().Next()}}}
			if err := store.Create(tx, n); err != nil {
				return err
			}
		}
		return nil
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := (&allocator.Loop{Store: st, Log: slog.New(slog.DiscardHandler)}).Run(ctx); ctx.Err() == nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return &attachments{Dispatcher: d}
}

func ask(container string, addrs ...string) *swarmpb.AttachRequest {
	return &swarmpb.AttachRequest{Network: "web", ContainerId: container, ContainerName: "name-of-" + container, Aliases: []string{"x"}, Addresses: addrs}
}

func TestAttachAndDetach(t *testing.T) {
	a := newAttachments(t)
	n1, n2 := as(t.Context(), "n1"), as(t.Context(), "n2")
	got, err := a.Attach(n1, ask("c1"))
	if err != nil {
		t.Fatal(err)
	}
	if got.GetNetwork().GetId() != "id-of-web" || got.GetNetwork().GetSpec().GetAnnotations().GetName() != "web" || !slices.Equal(got.GetAddresses(), []string{"10.1.0.2/29"}) {
		t.Errorf("%v", got)
	}
	task := store.Get[*api.Task](a.cfg.Store.View(), got.GetId())
	if task.Name() != "name-of-c1" || task.NodeID != "n1" || task.Status.State != swarm.TaskStateRunning || !slices.Equal(task.Networks[0].Aliases, []string{"x"}) || !live(task) || !api.Ready(task) {
		t.Errorf("%+v", task)
	}
	if l := newAssignmentSet("n1", &specCache{}).update(a.cfg.Store.View(), true, nil); len(l) != 0 {
		t.Error("the node is told to run", text(l))
	}
	// Again: another place, and the old one is free.
	again, err := a.Attach(n1, ask("c1", "10.1.0.2"))
	if err != nil || again.GetId() == got.GetId() || again.GetAddresses()[0] != "10.1.0.2/29" {
		t.Fatal(again, err)
	}
	for _, c := range []struct {
		ctx   context.Context
		req   *swarmpb.AttachRequest
		class api.Class
		says  string
	}{
		{n2, ask("c2", "10.1.0.2"), api.Conflict, "network web: Address already in use: 10.1.0.2"},
		{n2, ask("c2", "10.1.0.1"), api.Conflict, "Address already in use: 10.1.0.1"}, // the gateway
		{n2, ask("c2", "10.1.0.0"), api.Invalid, "10.1.0.0 (--ip, --ip6) is its subnet's own, not a host's"},
		{n2, ask("c2", "10.1.0.7"), api.Invalid, "10.1.0.7 (--ip, --ip6) is its subnet's own, not a host's"},
		{n2, ask("c2", "10.9.0.1"), api.Invalid, "10.9.0.1 (--ip, --ip6) is in none of its subnets"},
		{n2, ask("c2", "x"), api.Invalid, "one of each family"},
		{n2, ask("c2", "10.1.0.3", "10.1.0.4"), api.Invalid, "one of each family"},
		{n2, ask(""), api.Invalid, "id is missing"},
		{n2, ask(strings.Repeat("c", 300)), api.Invalid, "longer than"},
		{n2, &swarmpb.AttachRequest{Network: "closed", ContainerId: "c2"}, api.PermissionDenied, "not manually attachable"},
		{n2, &swarmpb.AttachRequest{Network: "nosuch", ContainerId: "c2"}, api.NotFound, "network nosuch not found"},
		{n2, &swarmpb.AttachRequest{Network: "id-of-", ContainerId: "c2"}, api.Invalid, "ambiguous"},
		{n2, &swarmpb.AttachRequest{ContainerId: "c2"}, api.Invalid, "ambiguous"},
		{as(t.Context(), "n3"), ask("c2"), api.NotFound, "not part of the swarm"},
		{t.Context(), ask("c2"), api.Unauthenticated, "for nodes"},
	} {
		if _, err := a.Attach(c.ctx, c.req); !api.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %v: %s", c.req, err, c.class, c.says)
		}
	}
	if n := store.Count[*api.Task](a.cfg.Store.View()); n != 1 {
		t.Errorf("%d tasks, want 1: what was refused leaves nothing", n)
	}
	// Others' places are none of a node's business.
	if _, err := a.Detach(n2, &swarmpb.DetachRequest{Ids: []string{again.GetId(), "nosuch"}}); err != nil {
		t.Fatal(err)
	}
	if r, err := a.Attached(n1, nil); err != nil || len(r.GetAttachments()) != 1 || r.GetAttachments()[0].GetContainerId() != "c1" {
		t.Error(r, err)
	}
	if r, err := a.Attached(n2, nil); err != nil || len(r.GetAttachments()) != 0 {
		t.Error(r, err)
	}
	if _, err := a.Detach(n1, &swarmpb.DetachRequest{Ids: []string{again.GetId()}}); err != nil || store.Count[*api.Task](a.cfg.Store.View()) != 0 {
		t.Error(err)
	}
}

func TestAttachToAFullNetwork(t *testing.T) {
	a := newAttachments(t)
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		if _, err := a.Attach(as(t.Context(), "n1"), ask(id)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.Attach(as(t.Context(), "n2"), ask("f"))
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "6 are in use") {
		t.Error(err)
	}
	r, err := a.Attached(as(t.Context(), "n1"), nil)
	if err != nil || len(r.GetAttachments()) != 5 {
		t.Fatal(r, err)
	}
	// A node that is gone: its places are given back.
	update(t, a.cfg.Store, func(tx *store.Tx) error {
		for task := range store.List[*api.Task](tx, store.ByNode("n1")) {
			c := *task
			c.Status.State = swarm.TaskStateOrphaned
			if err := store.Put(tx, &c); err != nil {
				return err
			}
		}
		return nil
	})
	if _, err := a.Attach(as(t.Context(), "n2"), ask("f")); err != nil {
		t.Error(err)
	}
	view, w := a.cfg.Store.Watch(store.KindTask)
	defer w.Close()
	for store.Count[*api.Task](view) != 1 {
		if _, err := w.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		view = a.cfg.Store.View()
	}
}
