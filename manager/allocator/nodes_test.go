package allocator

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// swarmOf is a store with the loop at work.
type swarmOf struct {
	t *testing.T
	*store.Store
}

func startLoop(t *testing.T) swarmOf {
	t.Helper()
	st, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := swarmOf{t, st}
	s.lead()
	return s
}

// lead has a leader's loop at work until stop is called, or the test ends.
func (s swarmOf) lead() (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := (&Loop{Store: s.Store, Log: slog.New(slog.DiscardHandler)}).Run(ctx); ctx.Err() == nil {
			s.t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	s.t.Cleanup(stop)
	return stop
}

func (s swarmOf) update(fn func(tx *store.Tx) error) {
	s.t.Helper()
	if _, err := s.Update(s.t.Context(), fn); err != nil {
		s.t.Fatal(err)
	}
}

// until waits for the store to be as it shall.
func (s swarmOf) until(is func(v *store.View) bool) {
	s.t.Helper()
	view, w := s.Watch(store.KindNetwork, store.KindNode, store.KindService, store.KindTask)
	defer w.Close()
	for !is(view) {
		if _, err := w.Next(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
		view = s.View()
	}
}

func (s swarmOf) network(n *api.Network) *api.Network {
	s.t.Helper()
	c, err := Network(n, store.List[*api.Network](s.View()), pools(24, "10.0.0.0/8", "fd00:1::/48"), 0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.update(func(tx *store.Tx) error { return store.Create(tx, c) })
	return c
}

func (s swarmOf) node(id string) {
	s.t.Helper()
	n := &api.Node{}
	n.ID = id
	s.update(func(tx *store.Tx) error { return store.Create(tx, n) })
}

// addressesOf are the addresses of nodes in a network; false unless all have one of each family, and
// none twice.
func addressesOf(v *store.View, network string, families int) ([]string, bool) {
	var all []string
	for n := range store.List[*api.Node](v) {
		a := n.IngressAddresses(network)
		if len(a) != families {
			return nil, false
		}
		for _, p := range a {
			all = append(all, p.String())
		}
	}
	slices.Sort(all)
	return all, len(all) == len(slices.Compact(slices.Clone(all)))
}

func ingress(id, sub string, v6 bool) *api.Network {
	n := newNetwork(id, subnet(sub))
	n.Spec.Ingress, n.Spec.IPv6Enabled = true, v6
	return n
}

func TestEveryNodeHasAnAddressInTheIngressNetwork(t *testing.T) {
	s := startLoop(t)
	s.node("a") // before there is a network
	s.network(ingress("i", "10.9.0.0/29", false))
	s.node("b")
	s.until(func(v *store.View) bool { l, ok := addressesOf(v, "i", 1); return ok && len(l) == 2 })
	for i := range 4 { // 10.9.0.1 is the gateway's: room for one less
		s.node(fmt.Sprint("c", i))
	}
	have := func(v *store.View) (n int) {
		for o := range store.List[*api.Node](v) {
			n += len(o.IngressAddresses("i"))
		}
		return n
	}
	s.until(func(v *store.View) bool { return have(v) == 5 })
	s.update(func(tx *store.Tx) error { return store.Delete[*api.Node](tx, "a") })
	s.until(func(v *store.View) bool { l, ok := addressesOf(v, "i", 1); return ok && len(l) == 5 })

	s.update(func(tx *store.Tx) error { return store.Delete[*api.Network](tx, "i") })
	s.until(func(v *store.View) bool {
		for n := range store.List[*api.Node](v) {
			if n.Ingress != nil || n.IngressNetwork != "" {
				return false
			}
		}
		return true
	})
	s.network(ingress("j", "10.9.0.0/24", true)) // the subnet that was there before
	s.until(func(v *store.View) bool { l, ok := addressesOf(v, "j", 2); return ok && len(l) == 10 })
	for n := range store.List[*api.Node](s.View()) {
		if a := n.Ingress; !netip.MustParsePrefix("10.9.0.0/24").Contains(a[0].Addr()) || a[0].Bits() != 24 || a[1].Bits() != 64 {
			t.Error(a)
		}
	}
}

func TestNodesOfALargeSwarmGetAddresses(t *testing.T) {
	s := startLoop(t)
	s.update(func(tx *store.Tx) error {
		for i := range 3 * maxNodes / 2 {
			n := &api.Node{}
			n.ID = fmt.Sprint("n", i)
			if err := store.Create(tx, n); err != nil {
				return err
			}
		}
		return nil
	})
	s.network(ingress("i", "10.9.0.0/20", false))
	s.until(func(v *store.View) bool { _, ok := addressesOf(v, "i", 1); return ok })
}
