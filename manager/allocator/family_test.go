package allocator

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// several is a network with subnets for one, and two, and, by IPv6, one and very many.
func several(t *testing.T) *api.Network {
	t.Helper()
	n := newNetwork("n", subnet("10.1.0.0/30"), subnet("10.2.0.0/29"), subnet("fd01::/127"), subnet("fd02::/64"))
	n.Spec.IPv6Enabled = true
	n.Spec.IPAMOptions.Configs[1].Gateway = netip.MustParseAddr("10.2.0.6")
	n.Spec.IPAMOptions.Configs[1].Range = netip.MustParsePrefix("10.2.0.4/30")
	n, err := Network(n, slices.Values([]*api.Network(nil)), pools(24, "10.0.0.0/8"), 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Each subnet is the network's alone, with a gateway. The next gives out addresses
// when the one before is full.
func TestSubnetsOfAFamilyFollowEachOther(t *testing.T) {
	n := several(t)
	var gateways []string
	for _, c := range n.IPAMOptions.Configs {
		gateways = append(gateways, c.Gateway.String())
	}
	if !slices.Equal(gateways, []string{"10.1.0.1", "10.2.0.6", "fd01::", "fd02::1"}) {
		t.Errorf("gateways %q", gateways)
	}
	if _, err := Network(newNetwork("other", subnet("10.2.0.0/25")), slices.Values([]*api.Network{n}), pools(24, "10.0.0.0/8"), 1); !api.Is(err, api.Conflict) {
		t.Error(err)
	}
	s := NewState()
	s.SetNetwork(n)
	var got []string
	for s.Free("n") > 0 {
		free := s.Free("n")
		l, err := s.take("n")
		if err != nil || s.Free("n") != free-1 {
			t.Fatalf("%v, %v, %d free", l, err, s.Free("n"))
		}
		got = append(got, fmt.Sprint(l))
	}
	if want := []string{"[10.1.0.2/30 fd01::1/127]", "[10.2.0.4/29 fd02::2/64]", "[10.2.0.5/29 fd02::3/64]"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	const why = "network n: no address is left in any of its 2 subnets: 5 are in use, 2 in 10.1.0.0/30 (10.1.0.1 to 10.1.0.2), 3 in 10.2.0.0/29 (10.2.0.4 to 10.2.0.6);"
	if _, err := s.take("n"); fullNetwork(err) != "n" || !api.Is(err, api.ResourceExhausted) || !strings.HasPrefix(err.Error(), why) {
		t.Error(err)
	}
	// What is free again in the first subnet comes first again.
	s.release("n", netip.MustParseAddr("10.2.0.5"))
	s.release("n", netip.MustParseAddr("10.1.0.2"))
	if l, err := s.take("n"); err != nil || l[0].String() != "10.1.0.2/30" {
		t.Error(l, err)
	}
	s.RemoveNetwork("n")
	s.SetNetwork(n)
	if s.InUse("n") != 4 || s.Free("n") != 3 {
		t.Errorf("of a network that was removed, and is there again, %d are in use and %d free", s.InUse("n"), s.Free("n"))
	}
}

func TestRefusalsNameSomeSubnets(t *testing.T) {
	var all []swarm.IPAMConfig
	for i := range 20 {
		all = append(all, subnet(fmt.Sprintf("10.1.%d.0/30", i)))
	}
	n, err := Network(newNetwork("n", all...), slices.Values([]*api.Network(nil)), pools(24, "10.0.0.0/8"), 0)
	if err != nil {
		t.Fatal(err)
	}
	s := NewState()
	s.SetNetwork(n)
	for err = nil; err == nil; {
		_, err = s.take("n")
	}
	if says := err.Error(); !strings.Contains(says, "any of its 20 subnets: 40 are in use, 2 in 10.1.0.0/30") || !strings.Contains(says, "2 in 10.1.7.0/30 (10.1.7.1 to 10.1.7.2), the rest in 12 more;") {
		t.Error(says)
	}
}

func TestAddressesAreAskedForInAnySubnet(t *testing.T) {
	for _, c := range []struct{ asked, got, says string }{
		{"10.2.0.2", "10.2.0.2/29 fd01::1/127", ""}, // out of the range
		{"10.2.0.4", "10.2.0.4/29 fd01::1/127", ""},
		{"fd02::77", "10.1.0.2/30 fd02::77/64", ""},
		{"10.1.0.2 fd01::1", "10.1.0.2/30 fd01::1/127", ""},
		{"10.2.0.6", "", "network n: Address already in use: 10.2.0.6"},
		{"10.3.0.1", "", "network n: address 10.3.0.1 is in none of its subnets 10.1.0.0/30, 10.2.0.0/29"},
		{"10.2.0.3 fd03::1", "", "network n: address fd03::1 is in none of its subnets fd01::/127, fd02::/64"},
	} {
		s := NewState()
		s.SetNetwork(several(t))
		before := s.InUse("n")
		asked := &api.AttachedContainer{}
		for a := range strings.FieldsSeq(c.asked) {
			asked.Addresses = append(asked.Addresses, netip.MustParseAddr(a))
		}
		o := newTask("t", "n")
		o.Spec.Container = asked
		o.Spec.Runtime, o.Spec.NetworkAttachmentSpec = swarm.RuntimeNetworkAttachment, &swarm.NetworkAttachmentSpec{ContainerID: "c"}
		got, err := Task(o, nil, nil, s, time.Unix(1, 0))
		if c.says != "" {
			if err == nil || got.Status.Err != c.says || fullNetwork(err) != "" || s.InUse("n") != before {
				t.Errorf("%s: %v, %v, %d in use", c.asked, got, err, s.InUse("n"))
			}
			continue
		}
		if err != nil || strings.Trim(fmt.Sprint(got.Networks[0].Addresses), "[]") != c.got {
			t.Errorf("%s: %v, %v, want %s", c.asked, got.Networks, err, c.got)
		}
	}
}

// A range may have nothing but the subnet's own address: nothing is given out, and
// nobody is told that something could be.
func TestRangesMayBeEmpty(t *testing.T) {
	for _, within := range []string{"10.1.0.0/32", "10.1.0.255/32"} {
		p := newPool(netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix(within))
		if a, ok := p.take(); ok || p.free() != 0 {
			t.Errorf("%s: %v, %d free", within, a, p.free())
		}
	}
}

// Tasks, services and nodes go on with the next subnet, before and after the leader
// changed, and those that wait are served whichever subnet has room.
func TestTheNextLeaderKnowsAllSubnets(t *testing.T) {
	st, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := swarmOf{t, st}
	stop := s.lead()
	n := newNetwork("n", subnet("10.1.0.0/29"), subnet("10.2.0.0/29"))
	n.Spec.Ingress = true
	s.network(n)
	s.update(func(tx *store.Tx) error {
		if err := store.Create(tx, service("web", swarm.PortConfig{TargetPort: 80})); err != nil {
			return err
		}
		for i := range 3 {
			o := &api.Node{}
			o.ID = fmt.Sprint("node", i)
			if err := store.Create(tx, o); err != nil {
				return err
			}
		}
		return nil
	})
	have := func(v *store.View) (all []string) {
		for o := range store.List[*api.Node](v) {
			for _, a := range o.Ingress {
				all = append(all, a.String())
			}
		}
		for o := range store.List[*api.Service](v) {
			for _, vip := range o.Endpoint.VirtualIPs {
				all = append(all, vip.Addr.String())
			}
		}
		for o := range store.List[*api.Task](v) {
			for _, l := range o.Networks {
				for _, a := range l.Addresses {
					all = append(all, a.String())
				}
			}
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	s.until(func(v *store.View) bool { return len(have(v)) == 4 })
	stop()
	s.lead()
	s.update(func(tx *store.Tx) error {
		for i := range 8 {
			if err := store.Create(tx, newTask(fmt.Sprint("t", i), "n")); err != nil {
				return err
			}
		}
		return nil
	})
	// Five of each subnet, the gateways being the sixth.
	s.until(func(v *store.View) bool {
		waits := 0
		for o := range store.List[*api.Task](v) {
			if o.Status.State == swarm.TaskStateNew && strings.Contains(o.Status.Err, "any of its 2 subnets: 12 are in use") {
				waits++
			}
		}
		return len(have(v)) == 10 && waits == 2
	})
	s.update(func(tx *store.Tx) error { return store.Delete[*api.Node](tx, "node1") })
	s.until(func(v *store.View) bool { return len(have(v)) == 10 })
	if all := have(s.View()); all[0] != "10.1.0.2/29" || all[9] != "10.2.0.6/29" {
		t.Error(all)
	}
}
