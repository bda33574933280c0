package network_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	dnet "github.com/moby/moby/api/types/network"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

// settled is what the data plane is made at once, and of that what a restart must
// not change.
func (n *node) settled(keep []string) string {
	if err := n.Keep(context.Background(), keep); err != nil {
		n.t.Fatal(err)
	}
	c := n.fake.There()
	if err := c.Validate(); err != nil {
		n.t.Fatal(err)
	}
	return strings.ReplaceAll(c.String(), " unknown-peers", "")
}

// Whatever managers say and tasks do, in whatever order: what is made step by step
// is what a daemon makes that starts then and finds it written.
func TestStepByStepIsAtOnce(t *testing.T) {
	n := newNode(t)
	release, err := n.Use([]*api.Network{overlayNetwork("net1", "back", "10.0.9.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	rapid.Check(t, func(rt *rapid.T) {
		n.restart()
		n.ForgetSwarm()
		hold, err := n.Use([]*api.Network{overlayNetwork("net1", "back", "10.0.9.0/24")})
		if err != nil {
			rt.Fatal(err)
		}
		running := map[string]bool{}
		keep := func() (ids []string) {
			for id := range running {
				ids = append(ids, id)
			}
			return ids
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			i := rapid.IntRange(1, 4).Draw(rt, "which")
			id := fmt.Sprint("c", i)
			switch rapid.SampledFrom([]string{"run", "run", "serve", "unready", "drain", "leave", "tell", "tell", "service", "remove", "whole", "gone", "mesh"}).Draw(rt, "step") {
			case "run":
				if running[id] {
					continue
				}
				task := &api.Task{ID: "task-" + id, ServiceID: "s1", Spec: &api.TaskSpec{}}
				task.Networks = []api.NetworkAttachment{{NetworkID: "net1", Addresses: []netip.Prefix{netip.PrefixFrom(taskAddr(i), 24)}}}
				n.Announce(id, task)
				e := given(taskAddr(i).String())
				e.DNSNames = []string{"web." + id, id}
				if _, err := n.Join(context.Background(), id, map[string]*dnet.EndpointSettings{"net1": e}, nil); err != nil {
					rt.Fatal(err)
				}
				running[id] = true
			case "serve":
				n.Serve(id, true)
			case "unready":
				n.Serve(id, false)
			case "drain":
				if _, err := n.Drain(context.Background(), id); err != nil {
					rt.Fatal(err)
				}
			case "leave":
				if err := n.Leave(context.Background(), id); err != nil {
					rt.Fatal(err)
				}
				delete(running, id)
			case "tell":
				e := endpoint(fmt.Sprintf("t%d 10.0.9.%d 192.0.2.%d s%d web.t%d %s", i, 50+i, i, i%2+1, i, rapid.SampledFrom([]string{"serving", "-"}).Draw(rt, "serving")))
				n.say(api.NetworkUpdate{ID: rapid.SampledFrom([]string{"net1", "net1", "ing"}).Draw(rt, "network"), Put: []api.OverlayEndpoint{e}})
			case "service":
				s := vip(fmt.Sprint("s", i%2+1), fmt.Sprint("web", i%2), fmt.Sprint("10.0.9.", 100+i))
				if rapid.Bool().Draw(rt, "dnsrr") {
					s.VirtualAddresses = nil
				}
				s.Ports = []api.OverlayPort{{Protocol: "tcp", Published: uint16(8000 + i), Target: 80}}
				n.say(api.NetworkUpdate{ID: rapid.SampledFrom([]string{"net1", "ing"}).Draw(rt, "network"), PutServices: []api.OverlayService{s}})
			case "remove":
				n.say(api.NetworkUpdate{ID: "net1", Remove: []string{fmt.Sprint("t", i)}, RemoveServices: []string{fmt.Sprint("s", i)}})
			case "whole":
				n.say(api.NetworkUpdate{ID: "net1", Whole: true})
			case "gone":
				n.say(api.NetworkUpdate{ID: rapid.SampledFrom([]string{"net1", "ing"}).Draw(rt, "network"), Gone: true})
			case "mesh":
				n.say(api.NetworkUpdate{ID: "ing", Ingress: ingressNetwork(), Own: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 24)}})
			}
			if rapid.Bool().Draw(rt, "made") {
				n.settled(keep())
			}
		}
		hold()
		stepwise := n.settled(keep())
		if err := n.Close(context.Background(), false); err != nil {
			rt.Fatal(err)
		}
		n.restart(keep()...)
		if again := n.settled(keep()); again != stepwise {
			rt.Fatalf("step by step:\n%s\nat once:\n%s", stepwise, again)
		}
	})
}

func taskAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 9, byte(3 + i)}) }

func (n *node) say(u ...api.NetworkUpdate) {
	n.Told(netip.MustParseAddr("192.0.2.1"), &api.OverlayUpdate{DataPort: 4789, Networks: u})
}

// BenchmarkTold is from the word of one endpoint among so many until the data plane
// (here: one in memory) is what follows from it.
func BenchmarkTold(b *testing.B) {
	for _, many := range []int{50, 5000} {
		b.Run(fmt.Sprint(many, "-endpoints"), func(b *testing.B) {
			n := newNode(b)
			release, err := n.Use([]*api.Network{overlayNetwork("net1", "back", "10.0.0.0/16")})
			if err != nil {
				b.Fatal(err)
			}
			defer release()
			u := api.NetworkUpdate{ID: "net1", Whole: true, PutServices: []api.OverlayService{vip("s1", "web", "10.0.255.1")}}
			for i := range many {
				a := netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i%250 + 1)})
				u.Put = append(u.Put, endpoint(fmt.Sprintf("t%d %s 192.0.2.2 s1 web.%d serving", i, a, i)))
			}
			n.say(u)
			if _, err := n.Join(b.Context(), "c1", map[string]*dnet.EndpointSettings{"net1": given("10.0.200.200")}, nil); err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				e := u.Put[i%many]
				e.Serving = i/many%2 == 1
				n.say(api.NetworkUpdate{ID: "net1", Put: []api.OverlayEndpoint{e}})
				if err := n.Keep(b.Context(), []string{"c1"}); err != nil {
					b.Fatal(err)
				}
			}
			k := network.BalancerKey{Network: "net1", Address: netip.MustParseAddr("10.0.255.1")}
			if have := n.fake.There().Balancers[k]; have == nil || len(have.Backends) > many {
				b.Error(have)
			}
		})
	}
}
