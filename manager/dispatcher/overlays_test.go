package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// told is what a node knows: network, endpoint or service, and what of it.
type told map[string]map[string]string

func (k told) take(updates []*swarmpb.EndpointsUpdate) {
	for _, m := range updates {
		u := m.API()
		if u.Complete {
			clear(k)
		}
		for i := range u.Networks {
			n := &u.Networks[i]
			if n.Gone {
				delete(k, n.ID)
				continue
			}
			if own := k[n.ID]["own"]; n.Whole || k[n.ID] == nil {
				if k[n.ID] = map[string]string{}; n.Ingress == nil && own != "" {
					k[n.ID]["own"] = own
				}
			}
			for _, r := range slices.Concat(n.Remove, n.RemoveServices) {
				delete(k[n.ID], r)
			}
			for _, e := range n.Put {
				k[n.ID][e.ID] = fmt.Sprint(e.Addresses, " at ", e.Node, " of ", e.Service, " as ", e.Name, " serving ", e.Serving)
			}
			for _, s := range n.PutServices {
				k[n.ID][s.ID] = fmt.Sprint(s)
			}
			if n.Ingress != nil {
				k[n.ID]["own"] = fmt.Sprint(n.Own)
			}
		}
	}
}

// serving are the endpoints that are given work.
func (k told) serving() map[string]bool {
	ids := map[string]bool{}
	for _, n := range k {
		for id, e := range n {
			if strings.HasSuffix(e, " serving true") {
				ids[id] = true
			}
		}
	}
	return ids
}

// expected is what a node should know, from all that there is.
func expected(view *store.View, node string) told {
	k := told{}
	for t := range store.List[*api.Task](view, store.ByNode(node)) {
		for _, a := range t.Networks {
			if live(t) {
				k[a.NetworkID] = map[string]string{}
			}
		}
	}
	for o := range store.List[*api.Network](view) {
		if !o.Spec.Ingress {
			continue
		}
		k[o.ID] = map[string]string{}
		for n := range store.List[*api.Node](view) {
			if own := n.IngressAddresses(o.ID); n.ID == node {
				k[o.ID]["own"] = fmt.Sprint(own)
			} else if len(own) > 0 {
				k[o.ID][n.ID] = fmt.Sprint([]netip.Addr{own[0].Addr()}, " at ", dataAddr(n), " of  as  serving false")
			}
		}
	}
	for s := range store.List[*api.Service](view) {
		for _, v := range s.Endpoint.VirtualIPs {
			if k[v.NetworkID] == nil {
				continue
			}
			o := api.OverlayService{ID: s.ID, Name: s.Spec.Name, VirtualAddresses: []netip.Addr{v.Addr.Addr()}, Balance: api.Balance(s.Spec.Labels["legion.network.balance"])}
			for _, p := range s.Endpoint.Ports {
				if o2 := store.Get[*api.Network](view, v.NetworkID); o2 != nil && o2.Spec.Ingress {
					o.Ports = append(o.Ports, api.OverlayPort{Protocol: string(p.Protocol), Published: uint16(p.PublishedPort), Target: uint16(p.TargetPort)})
				}
			}
			k[v.NetworkID][s.ID] = fmt.Sprint(o)
		}
	}
	for t := range store.List[*api.Task](view) {
		n := store.Get[*api.Node](view, t.NodeID)
		for _, a := range t.Networks {
			if !live(t) || k[a.NetworkID] == nil {
				continue
			}
			at, name := dataAddr(n), ""
			if t.NodeID == node {
				at = "invalid IP"
			}
			end := t.DesiredState == swarm.TaskStateShutdown
			if !end && (t.Status.State == swarm.TaskStateStarting || t.Status.State == swarm.TaskStateRunning) {
				name = t.Name()
			}
			serves := !end && t.Status.State == swarm.TaskStateRunning && t.Status.Err == "" && n.Status.State != swarm.NodeStateDown && n.DataAddr != ""
			k[a.NetworkID][t.ID] = fmt.Sprint([]netip.Addr{a.Addresses[0].Addr()}, " at ", at, " of ", t.ServiceID, " as ", name, " serving ", serves)
		}
	}
	return k
}

// crowd is a swarm whose objects change at random.
type crowd struct {
	rt *rapid.T
	d  *Dispatcher
	n  int // steps so far
}

// set writes, and tells the dispatcher as its watch does.
func (c *crowd) set(fn func(tx *store.Tx) error) {
	_, w := c.d.cfg.Store.Watch(store.KindTask, store.KindNode, store.KindCluster, store.KindService, store.KindNetwork)
	defer w.Close()
	before := c.d.cfg.Store.View().Index()
	update(c.rt, c.d.cfg.Store, fn)
	if c.d.cfg.Store.View().Index() == before {
		return
	}
	changes, err := w.Next(context.Background())
	if err != nil {
		c.rt.Fatal(err)
	}
	for _, x := range changes {
		c.d.changed(x)
	}
}

func edit[T api.Object](c *crowd, what string, change func(tx *store.Tx, o T) error) {
	var ids []string
	for o := range store.List[T](c.d.cfg.Store.View()) {
		switch x := any(o).(type) {
		case *api.Task:
			ids = append(ids, x.ID)
		case *api.Node:
			ids = append(ids, x.ID)
		case *api.Service:
			ids = append(ids, x.ID)
		case *api.Network:
			ids = append(ids, x.ID)
		}
	}
	if len(ids) > 0 {
		id := rapid.SampledFrom(ids).Draw(c.rt, what)
		c.set(func(tx *store.Tx) error { return change(tx, store.Get[T](tx, id)) })
	}
}

func (c *crowd) addr(net byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, net, 0, byte(c.n)}), 24)
}

func (c *crowd) ingress() string { return c.d.overlays.ingressNetwork() }

// step changes something.
func (c *crowd) step() {
	c.n++
	pick := func(of ...string) string { return rapid.SampledFrom(of).Draw(c.rt, "which") }
	switch pick("task", "task", "task", "state", "state", "end", "stop", "remove", "service", "change service", "remove service", "node", "down", "ingress", "mesh", "all") {
	case "task":
		t := newTask(fmt.Sprint("t", c.n), pick("n0", "n1", "n2"))
		t.ServiceID = pick("s1", "s2")
		nets := []string{pick("a", "b")}
		if i, s := c.ingress(), store.Get[*api.Service](c.d.cfg.Store.View(), t.ServiceID); i != "" && s != nil && api.UsesIngress(s.Spec.EndpointSpec) {
			nets = append(nets, i)
		}
		for i, n := range nets {
			t.Networks = append(t.Networks, api.NetworkAttachment{NetworkID: n, Addresses: []netip.Prefix{c.addr(byte(i))}})
			if i == 0 {
				t.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: n}}
			}
		}
		t.SpecVersion = uint64(c.n)
		c.set(func(tx *store.Tx) error { return store.Create(tx, t) })
	case "state":
		edit(c, "task", func(tx *store.Tx, o *api.Task) error {
			u := *o
			u.Status.State = swarm.TaskState(pick("starting", "running", "running"))
			u.Status.Err = pick("", "not ready")
			return store.Put(tx, &u)
		})
	case "end", "stop":
		edit(c, "task", func(tx *store.Tx, o *api.Task) error {
			u := *o
			if u.DesiredState = swarm.TaskStateShutdown; pick("", "ended") != "" {
				u.Status.State = swarm.TaskStateFailed
			}
			return store.Put(tx, &u)
		})
	case "remove":
		edit(c, "task", func(tx *store.Tx, o *api.Task) error { return store.Delete[*api.Task](tx, o.ID) })
	case "service":
		s := &api.Service{}
		s.ID = pick("s1", "s2")
		if store.Get[*api.Service](c.d.cfg.Store.View(), s.ID) != nil {
			return
		}
		s.Spec.Name = "web" + s.ID
		s.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "a"}}
		s.Endpoint.VirtualIPs = []swarm.EndpointVirtualIP{{NetworkID: "a", Addr: c.addr(9)}}
		if i := c.ingress(); i != "" {
			s.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
			s.Endpoint.VirtualIPs = append(s.Endpoint.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: i, Addr: c.addr(8)})
			s.Endpoint.Ports = []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080 + uint32(s.ID[1]-'0')}} // no two services have one
		}
		c.set(func(tx *store.Tx) error { return store.Create(tx, s) })
	case "change service":
		edit(c, "service", func(tx *store.Tx, o *api.Service) error {
			u := *o
			u.Spec.Labels = map[string]string{"legion.network.balance": pick("client", "least")}
			return store.Put(tx, &u)
		})
	case "remove service":
		// With its tasks: those of a service that is gone are told of no more once
		// all is told anew.
		edit(c, "service", func(tx *store.Tx, o *api.Service) error {
			for t := range store.List[*api.Task](tx, store.ByService(o.ID)) {
				if err := store.Delete[*api.Task](tx, t.ID); err != nil {
					return err
				}
			}
			return store.Delete[*api.Service](tx, o.ID)
		})
	case "node":
		edit(c, "node", func(tx *store.Tx, o *api.Node) error {
			u := *o
			u.DataAddr = pick(fmt.Sprintf("198.51.100.%d", c.n), u.Status.Addr)
			return store.Put(tx, &u)
		})
	case "down":
		edit(c, "node", func(tx *store.Tx, o *api.Node) error {
			u := *o
			u.Status.State = swarm.NodeState(pick("down", "ready"))
			return store.Put(tx, &u)
		})
	case "ingress":
		if c.ingress() != "" {
			return
		}
		o := &api.Network{}
		o.ID, o.Spec.Name, o.Spec.Ingress = "ingress", "ingress", true
		c.set(func(tx *store.Tx) error { return store.Create(tx, o) })
	case "mesh":
		edit(c, "node", func(tx *store.Tx, o *api.Node) error {
			u := *o
			u.Ingress, u.IngressNetwork = []netip.Prefix{c.addr(7)}, "ingress"
			return store.Put(tx, &u)
		})
	case "all":
		c.d.overlays.resync(c.d.cfg.Store.View())
	}
}

// Whatever happens in the swarm: what a node is told adds up to what there is.
func TestEndpointsAddUp(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDispatcher(rt)
		c := &crowd{rt: rt, d: d}
		c.set(func(tx *store.Tx) error {
			for i := range 3 {
				n := &api.Node{}
				if n.ID, n.Status.Addr = fmt.Sprint("n", i), fmt.Sprintf("192.0.2.%d", i); i > 0 {
					n.DataAddr = n.Status.Addr // or else it has not opened a stream yet
				}
				if err := store.Create(tx, n); err != nil {
					return err
				}
			}
			return nil
		})
		s, err := d.overlays.add("n0", true)
		if err != nil {
			rt.Fatal(err)
		}
		known, has := map[string]struct{}{}, told{}
		sync := func() {
			var u []*swarmpb.EndpointsUpdate
			u, known = d.endpointUpdates(s, known)
			served := has.serving()
			if has.take(u); len(u) > 0 && u[len(u)-1].GetNumber() > 0 {
				return
			}
			for id := range served {
				if t := store.Get[*api.Task](d.cfg.Store.View(), id); t != nil && live(t) && api.ToldToEnd(t.DesiredState) && !has.serving()[id] {
					rt.Fatalf("the node need not confirm that task %s does not serve", id)
				}
			}
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			if c.step(); rapid.Bool().Draw(rt, "sync") {
				sync()
			}
		}
		sync()
		if d := cmp.Diff(expected(d.cfg.Store.View(), "n0"), has, cmpopts.EquateEmpty()); d != "" {
			rt.Fatalf("what there is (-), what was told (+):\n%s", d)
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

func newDispatcher(t fataler) *Dispatcher {
	t.Helper()
	d, err := New(Config{Store: newStore(t), Node: "m", Peer: func(context.Context) (ca.Identity, string, bool) { return ca.Identity{}, "", false }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A large network comes in messages of bounded size, which are one update.
func TestLargeNetworksComeInParts(t *testing.T) {
	c := &telling{updates: []*swarmpb.EndpointsUpdate{{Complete: true}}}
	n := c.open("a")
	n.Whole = true
	const many = 20_000
	for i := range many {
		n = c.endpoint(n, &swarmpb.OverlayEndpoint{Id: fmt.Sprint(i), Addresses: []string{"10.0.0.1"}, NodeAddr: "192.0.2.1", Name: strings.Repeat("n", 100)})
	}
	k := told{}
	k.take(c.updates)
	if len(c.updates) < 3 || len(k["a"]) != many {
		t.Errorf("%d messages, %d endpoints", len(c.updates), len(k["a"]))
	}
	for i, u := range c.updates {
		if size := proto.Size(u); u.GetMore() == (i == len(c.updates)-1) || size > maxUpdate+1<<17 || i > 0 && u.GetNetworks()[0].GetWhole() {
			t.Errorf("message %d: %d bytes, more: %v", i, size, u.GetMore())
		}
	}
}
