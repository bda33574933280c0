package dispatcher

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// told is what a node knows of endpoints: network, task, address and node.
type told map[string]map[string]string

func (k told) take(updates []*swarmpb.EndpointsUpdate) {
	for _, u := range updates {
		if u.GetComplete() {
			clear(k)
		}
		for _, n := range u.GetNetworks() {
			id := n.GetNetworkId()
			if n.GetGone() {
				delete(k, id)
				continue
			}
			if n.GetWhole() || k[id] == nil {
				k[id] = map[string]string{}
			}
			for _, r := range n.GetRemove() {
				delete(k[id], r)
			}
			for _, e := range n.GetPut() {
				k[id][e.GetId()] = strings.Join(e.GetAddresses(), ",") + " at " + e.GetNodeAddr()
			}
		}
	}
}

// expected is what a node should know.
func expected(view *store.View, node string) told {
	k := told{}
	for n := range networksAt(view, node) {
		k[n] = map[string]string{}
		for t := range store.List[*api.Task](view) {
			if !live(t) || t.NodeID == node {
				continue
			}
			for _, a := range t.Networks {
				if a.NetworkID == n {
					k[n][t.ID] = a.Addresses[0].Addr().String() + " at " + dataAddr(store.Get[*api.Node](view, t.NodeID))
				}
			}
		}
	}
	return k
}

// Whatever happens to tasks and nodes: what a node is told adds up to what it needs.
func TestEndpointsAddUp(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := &Dispatcher{cfg: Config{Store: newStore(rt)}, overlays: newOverlays()}
		set := func(fn func(tx *store.Tx) error) { update(rt, d.cfg.Store, fn) }
		set(func(tx *store.Tx) error {
			for i := range 3 {
				n := &api.Node{}
				n.ID, n.Status.Addr = fmt.Sprint("n", i), fmt.Sprintf("192.0.2.%d", i)
				if err := store.Create(tx, n); err != nil {
					return err
				}
			}
			return nil
		})
		s, err := d.overlays.add("n0")
		if err != nil {
			rt.Fatal(err)
		}
		known, has := map[string]struct{}{}, told{}
		sync := func() {
			var u []*swarmpb.EndpointsUpdate
			u, known = d.endpointUpdates(s, known)
			has.take(u)
		}
		for i := range rapid.IntRange(1, 40).Draw(rt, "steps") {
			var ids []string
			for t := range store.List[*api.Task](d.cfg.Store.View()) {
				ids = append(ids, t.ID)
			}
			switch step := rapid.SampledFrom([]string{"add", "add", "add", "end", "remove", "move", "sync", "all"}).Draw(rt, "step"); {
			case step == "add":
				task := newTask(fmt.Sprint("t", i), rapid.SampledFrom([]string{"n0", "n1", "n2"}).Draw(rt, "node"))
				task.ServiceID = task.ID
				net := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "network")
				task.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: net}}
				task.Networks = []api.NetworkAttachment{{NetworkID: net, Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 24)}}}
				set(func(tx *store.Tx) error { return store.Create(tx, task) })
				d.overlays.changed(task.ID, nil, store.Get[*api.Task](d.cfg.Store.View(), task.ID))
			case step == "end" && len(ids) > 0:
				old := store.Get[*api.Task](d.cfg.Store.View(), rapid.SampledFrom(ids).Draw(rt, "task"))
				ended := *old
				ended.Status.State = swarm.TaskStateFailed
				set(func(tx *store.Tx) error { return store.Put(tx, &ended) })
				d.overlays.changed(old.ID, old, &ended)
			case step == "remove" && len(ids) > 0:
				old := store.Get[*api.Task](d.cfg.Store.View(), rapid.SampledFrom(ids).Draw(rt, "task"))
				set(func(tx *store.Tx) error { return store.Delete[*api.Task](tx, old.ID) })
				d.overlays.changed(old.ID, old, nil)
			case step == "move":
				old := store.Get[*api.Node](d.cfg.Store.View(), "n1")
				moved := *old
				moved.DataAddr = fmt.Sprintf("198.51.100.%d", i)
				set(func(tx *store.Tx) error { return store.Put(tx, &moved) })
				d.nodeMoved(old, &moved)
			case step == "all":
				d.overlays.every()
			default:
				sync()
			}
		}
		sync()
		want := expected(d.cfg.Store.View(), "n0")
		if !maps.EqualFunc(has, want, maps.Equal[map[string]string]) {
			rt.Fatalf("told %v, want %v", has, want)
		}
		if u, _ := d.endpointUpdates(s, known); len(u) != 0 {
			rt.Fatalf("told again: %v", u)
		}
		d.overlays.remove(s, known)
		if len(d.overlays.byNode)+len(d.overlays.byNetwork) != 0 {
			rt.Fatal("a stream that ended is still followed")
		}
	})
}

func TestLargeNetworksComeInParts(t *testing.T) {
	c := &chunks{updates: []*swarmpb.EndpointsUpdate{{}}}
	n := c.open("a")
	n.Whole = true
	for i := range 2*maxEndpoints + 1 {
		n = c.put(n, &swarmpb.OverlayEndpoint{Id: fmt.Sprint(i), Addresses: []string{"10.0.0.1"}, NodeAddr: "192.0.2.1"})
	}
	k := told{}
	k.take(c.updates)
	if len(c.updates) != 3 || len(k["a"]) != 2*maxEndpoints+1 || slices.ContainsFunc(c.updates[1:], func(u *swarmpb.EndpointsUpdate) bool { return u.GetNetworks()[0].GetWhole() }) {
		t.Errorf("%d messages, %d endpoints", len(c.updates), len(k["a"]))
	}
}
