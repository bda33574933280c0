package allocator

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

func pools(size int, bases ...string) Pools {
	p := Pools{Size: size}
	for _, b := range bases {
		p.Bases = append(p.Bases, netip.MustParsePrefix(b))
	}
	return p
}

func newNetwork(id string, configs ...swarm.IPAMConfig) *api.Network {
	n := &api.Network{}
	n.ID, n.Spec.Name = id, id
	n.Spec.IPAMOptions = &swarm.IPAMOptions{Configs: configs}
	return n
}

func subnet(s string) swarm.IPAMConfig { return swarm.IPAMConfig{Subnet: netip.MustParsePrefix(s)} }

func TestNetworkGetsWhatItLeavesOpen(t *testing.T) {
	ten := pools(24, "10.0.0.0/8", "fd00:1::/48")
	ingress, err := Network(newNetwork("ingress"), slices.Values([]*api.Network(nil)), ten, 0)
	if err != nil || ingress.VNI() != 4096 || ingress.IPAMOptions.Configs[0].Subnet.String() != "10.0.0.0/24" || ingress.IPAMOptions.Configs[0].Gateway.String() != "10.0.0.1" {
		t.Fatalf("%+v, %v", ingress, err)
	}
	wide := newNetwork("wide", subnet("10.0.1.0/23"))
	wide.Reserved = map[string]netip.Addr{"a": netip.MustParseAddr("10.0.0.0").Next()}
	all := []*api.Network{ingress}
	if _, err := Network(newNetwork("w", subnet("10.0.0.0/16")), slices.Values(all), ten, 1); !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "10.0.0.0/24 of network ingress") {
		t.Error(err)
	}
	dual := newNetwork("dual", subnet("10.0.2.0/23"))
	dual.Spec.IPv6Enabled = true
	dual.Reserved = map[string]netip.Addr{"router": netip.MustParseAddr("10.0.2.1")}
	d, err := Network(dual, slices.Values(all), ten, 7)
	if err != nil || d.VNI() != 4103 || d.IPAMOptions.Configs[0].Gateway.String() != "10.0.2.2" || d.IPAMOptions.Configs[1].Subnet.String() != "fd00:1::/64" {
		t.Fatalf("%+v, %v", d, err)
	}
	next, err := Network(newNetwork("next"), slices.Values([]*api.Network{ingress, d}), ten, 7)
	if err != nil || next.VNI() != 4104 || next.IPAMOptions.Configs[0].Subnet.String() != "10.0.1.0/24" {
		t.Fatalf("%+v, %v", next, err)
	}
	asked := newNetwork("asked")
	asked.Spec.DriverConfiguration = &swarm.Driver{Options: map[string]string{api.OptionVNIs: "4103"}}
	if _, err := Network(asked, slices.Values([]*api.Network{d}), ten, 0); !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "network dual") {
		t.Error(err)
	}
}

func TestVXLANIDs(t *testing.T) {
	has := newNetwork("has")
	has.DriverState.Options = map[string]string{api.OptionVNIs: "4097,5000"}
	others := slices.Values([]*api.Network{has})
	for _, c := range []struct {
		asked   string
		subnets int
		got     string
		class   api.Class
		says    string
	}{
		{"", 1, "4096", 0, ""},
		{"", 3, "4096,4098,4099", 0, ""},
		{"7", 1, "7", 0, ""},
		{" 7, 9", 3, "7,9,4096", 0, ""},
		{"4096", 2, "4096,4098", 0, ""},
		{"7,8", 1, "", api.Invalid, "one number for each IPv4 subnet at most, and there are 1"},
		{"7,7", 2, "", api.Invalid, "different numbers from 1 to 16777215"},
		{"0", 1, "", api.Invalid, "different numbers"},
		{"7,", 2, "", api.Invalid, "different numbers"},
		{"16777216", 1, "", api.Invalid, "different numbers"},
		{"7,5000", 2, "", api.Conflict, "VXLAN id 5000 is already that of network has"},
	} {
		n := newNetwork("n")
		for i := range c.subnets {
			n.Spec.IPAMOptions.Configs = append(n.Spec.IPAMOptions.Configs, subnet(fmt.Sprintf("10.1.%d.0/24", i)))
		}
		n.Spec.DriverConfiguration = &swarm.Driver{Options: map[string]string{api.OptionVNIs: c.asked}}
		got, err := Network(n, others, pools(24, "10.0.0.0/8"), 0)
		switch {
		case c.says != "":
			if !api.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q for %d subnets: %v", c.asked, c.subnets, err)
			}
		case err != nil || got.DriverState.Options[api.OptionVNIs] != c.got || len(slices.Collect(got.VNIs())) != c.subnets:
			t.Errorf("%q for %d subnets: %v, %v, want %s", c.asked, c.subnets, got, err, c.got)
		}
	}
}

func TestPoolsAreUsedUp(t *testing.T) {
	small := pools(26, "10.9.0.0/25", "10.8.0.0/26")
	var all []*api.Network
	var got []string
	for i := range 3 {
		n, err := Network(newNetwork(fmt.Sprint("n", i)), slices.Values(all), small, 0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
		got = append(got, n.IPAMOptions.Configs[0].Subnet.String())
	}
	if want := []string{"10.9.0.0/26", "10.9.0.64/26", "10.8.0.0/26"}; !slices.Equal(got, want) {
		t.Error(got)
	}
	_, err := Network(newNetwork("more"), slices.Values(all), small, 0)
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "10.9.0.0/25, 10.8.0.0/26 is used up by 3 subnets") {
		t.Error(err)
	}
}

func TestSubnetsKeepOffTheHostsRoutes(t *testing.T) {
	p := pools(24, "10.0.0.0/8")
	p.Routes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/23"), netip.MustParsePrefix("10.0.2.16/28")}
	n, err := Network(newNetwork("n"), slices.Values([]*api.Network(nil)), p, 0)
	if err != nil || n.IPAMOptions.Configs[0].Subnet.String() != "10.0.3.0/24" {
		t.Fatal(n, err)
	}
	_, err = Network(newNetwork("m", subnet("10.0.2.0/24")), slices.Values([]*api.Network{n}), p, 0)
	if !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "subnet 10.0.2.0/24 overlaps the route to 10.0.2.16/28") {
		t.Error(err)
	}
	p.Routes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	_, err = Network(newNetwork("m"), slices.Values([]*api.Network(nil)), p, 0)
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "by 0 subnets (of /24 each) and by routes of this manager's host (10.0.0.0/8)") {
		t.Error(err)
	}
}

func TestAddressesRunOut(t *testing.T) {
	s := NewState()
	n, err := Network(newNetwork("n", subnet("10.1.0.0/29")), slices.Values([]*api.Network(nil)), pools(24, "10.0.0.0/8"), 0)
	if err != nil {
		t.Fatal(err)
	}
	s.SetNetwork(n)
	var tasks []*api.Task
	for i := range 5 {
		c, _ := Task(newTask(fmt.Sprint(i), "n"), nil, nil, s, time.Unix(1, 0))
		tasks = append(tasks, c)
		if want := fmt.Sprintf("10.1.0.%d/29", i+2); c.Networks[0].Addresses[0].String() != want {
			t.Errorf("%v, want %s", c.Networks, want)
		}
	}
	waits, why := Task(newTask("5", "n"), nil, nil, s, time.Unix(1, 0))
	if fullNetwork(why) != "n" || s.Free("n") != 0 || waits.Status.State != swarm.TaskStateNew || !strings.Contains(waits.Status.Err, "network n: no address is left in 10.1.0.0/29 (10.1.0.1 to 10.1.0.6): 6 are in use") {
		t.Errorf("%+v", waits.Status)
	}
	ended := *tasks[2]
	ended.Status.State = swarm.TaskStateFailed
	if freed := s.ChangeTask(tasks[2], &ended); !slices.Equal(freed, []string{"n"}) {
		t.Error(freed)
	}
	if again, _ := Task(waits, nil, nil, s, time.Unix(1, 0)); again.Networks[0].Addresses[0].String() != "10.1.0.4/29" {
		t.Error(again.Networks)
	}
}

func newTask(id string, networks ...string) *api.Task {
	t := &api.Task{ID: id, Spec: &api.TaskSpec{}, Status: swarm.TaskStatus{State: swarm.TaskStateNew}}
	for _, n := range networks {
		t.Spec.Networks = append(t.Spec.Networks, swarm.NetworkAttachmentConfig{Target: n})
	}
	return t
}

// world is a swarm that changes at random, with the state that follows it.
type world struct {
	networks map[string]*api.Network
	services map[string]*api.Service
	tasks    map[string]*api.Task
	nodes    map[string]*api.Node
	state    *State
}

// computed is the state as a new leader computes it.
func (w *world) computed() *State {
	s := NewState()
	for _, n := range w.networks {
		s.SetNetwork(n)
	}
	for _, n := range w.nodes {
		s.ChangeNode(nil, n)
	}
	for _, o := range w.services {
		s.ChangeService(nil, o)
	}
	for _, t := range w.tasks {
		s.ChangeTask(nil, t)
	}
	s.Resume()
	return s
}

// words are the addresses in use, by network.
func (s *State) words() map[string][]map[uint64]uint64 {
	all := map[string][]map[uint64]uint64{}
	for id, n := range s.nets {
		for _, f := range n.families {
			for _, p := range f {
				all[id] = append(all[id], p.words)
			}
		}
	}
	return all
}

// Whatever comes, changes and goes: no two have an address, what is in use can be
// computed from what there is, and nothing is left over.
func TestAddressesAreNeverSharedNorLost(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{networks: map[string]*api.Network{}, services: map[string]*api.Service{}, tasks: map[string]*api.Task{}, nodes: map[string]*api.Node{}, state: NewState()}
		draw := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(rt, what) }
		for i := range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch draw("step", "network", "remove network", "service", "remove service", "task", "task", "task", "end task", "remove task", "node", "remove node") {
			case "network":
				w.addNetwork(rt, draw("network", "a", "b", "ingress", "several"), i)
			case "remove network":
				id := draw("network", append(sortedKeys(w.networks), "none")...)
				delete(w.networks, id)
				w.state.RemoveNetwork(id)
			case "service":
				w.putService(draw("service", "x", "y"), draw("mode", "vip", "dnsrr"),
					[]string{draw("network", append(sortedKeys(w.networks), "none")...), draw("network", append(sortedKeys(w.networks), "none")...)}, draw("port", "", "80"))
			case "remove service":
				id := draw("service", "x", "y")
				w.state.ChangeService(w.services[id], nil)
				delete(w.services, id)
			case "task":
				w.addTask(rt, fmt.Sprint("t", i), draw("service", "x", "y"))
			case "node":
				w.putNode(draw("node", "n1", "n2", "n3", "n4"))
			case "remove node":
				id := draw("node", "n1", "n2", "n3", "n4")
				w.state.ChangeNode(w.nodes[id], nil)
				delete(w.nodes, id)
			case "end task", "remove task":
				w.endTask(draw("task", append(sortedKeys(w.tasks), "none")...), rapid.Bool().Draw(rt, "for good"))
			}
			w.check(rt)
		}
		for id := range w.tasks {
			w.endTask(id, true)
		}
		for id, n := range w.nodes {
			w.state.ChangeNode(n, nil)
			delete(w.nodes, id)
		}
		for id, s := range w.services {
			w.state.ChangeService(s, nil)
			delete(w.services, id)
		}
		for id := range w.networks {
			if n := w.state.InUse(id); n != uint64(len(w.networks[id].Subnets())+len(w.networks[id].Reserved)) {
				rt.Fatalf("network %s: %d addresses are in use although nobody is left but gateways", id, n)
			}
		}
	})
}

func sortedKeys[V any](m map[string]V) []string {
	var l []string
	for k := range m {
		l = append(l, k)
	}
	slices.Sort(l)
	return l
}

func (w *world) addNetwork(rt *rapid.T, kind string, step int) {
	id := fmt.Sprint(kind, step) // none is used twice
	var others []*api.Network
	for _, o := range w.networks {
		if others = append(others, o); kind == "ingress" && o.Spec.Ingress || len(w.networks) > 5 {
			return
		}
	}
	n := newNetwork(id)
	if kind == "several" {
		n = newNetwork(id, subnet(fmt.Sprintf("10.1.%d.0/30", step)), subnet(fmt.Sprintf("10.1.%d.16/29", step)), subnet(fmt.Sprintf("10.1.%d.8/30", step)),
			subnet(fmt.Sprintf("fd01:%d::/126", step)), subnet(fmt.Sprintf("fd01:%d:0:1::/64", step)))
		n.Spec.IPAMOptions.Configs[1].Range = netip.MustParsePrefix(fmt.Sprintf("10.1.%d.20/31", step))
		n.Reserved = map[string]netip.Addr{"router": netip.MustParseAddr(fmt.Sprintf("10.1.%d.17", step)), "other": netip.MustParseAddr(fmt.Sprintf("10.1.%d.20", step))}
	}
	n.Spec.Ingress = kind == "ingress"
	n.Spec.IPv6Enabled = kind == "b" || kind == "several"
	n, err := Network(n, slices.Values(others), pools(28, "10.0.0.0/24", "fd00::/48"), 0)
	if err != nil {
		rt.Fatal(err)
	}
	for _, o := range others {
		if n.Clashes(o) {
			rt.Fatalf("%s and %s clash", n.ID, o.ID)
		}
	}
	w.networks[id] = n
	w.state.SetNetwork(n)
}

func (w *world) putService(id, mode string, networks []string, port string) {
	s := &api.Service{}
	if old := w.services[id]; old != nil {
		*s = *old
	}
	s.ID = id
	s.Spec.TaskTemplate.Networks = nil
	for _, n := range slices.Compact(networks) {
		if o := w.networks[n]; o != nil && !o.Spec.Ingress {
			s.Spec.TaskTemplate.Networks = append(s.Spec.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n})
		}
	}
	s.Spec.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionMode(mode)}
	if port != "" && mode == "vip" {
		s.Spec.EndpointSpec.Ports = []swarm.PortConfig{{TargetPort: 80}}
	}
	c, err := Service(s, api.Ports{}, w.state)
	if err != nil {
		return
	}
	if c == nil {
		c = s
	}
	w.state.ChangeService(w.services[id], c)
	w.services[id] = c
}

// putNode has a node that is there, or a new one, have what it needs.
func (w *world) putNode(id string) {
	n := w.nodes[id]
	if n == nil {
		n = &api.Node{}
		n.ID = id
	}
	c, err := Node(n, w.state)
	if err != nil {
		return
	}
	if c == nil {
		c = n
	}
	w.state.ChangeNode(w.nodes[id], c)
	w.nodes[id] = c
}

func (w *world) addTask(rt *rapid.T, id, service string) {
	s := w.services[service]
	if s == nil {
		return
	}
	t := newTask(id)
	t.ServiceID, t.Spec = service, s.TaskSpec()
	first := map[string][]netip.Prefix{} // where addresses are to come from
	for _, n := range t.Spec.Networks {
		first[n.Target] = w.withRoom(n.Target)
	}
	if c, _ := Task(t, s, nil, w.state, time.Unix(1, 0)); c != nil && c.Status.State == swarm.TaskStatePending {
		w.tasks[id] = c
		w.state.ChangeTask(t, c) // as the watch tells of it
		for _, n := range c.Networks[:len(first)] {
			var from []netip.Prefix
			for _, a := range n.Addresses {
				from = append(from, a.Masked())
			}
			if !slices.Equal(from, first[n.NetworkID]) {
				rt.Fatalf("network %s: addresses %v, want them of %v", n.NetworkID, n.Addresses, first[n.NetworkID])
			}
		}
	}
}

// withRoom are the first subnets, one a family, that have addresses left.
func (w *world) withRoom(id string) (l []netip.Prefix) {
	n := w.state.nets[id]
	if n == nil {
		return nil
	}
	for _, f := range n.families {
		if i := slices.IndexFunc(f, func(p *pool) bool { return p.free() > 0 }); i >= 0 {
			l = append(l, f[i].subnet)
		}
	}
	return l
}

func (w *world) endTask(id string, remove bool) {
	t := w.tasks[id]
	if t == nil {
		return
	}
	if remove {
		w.state.ChangeTask(t, nil)
		delete(w.tasks, id)
		return
	}
	c := *t
	c.Status.State = swarm.TaskStateShutdown
	w.state.ChangeTask(t, &c)
	w.tasks[id] = &c
}

func (w *world) check(rt *rapid.T) {
	owners := map[string]string{}
	claim := func(who string, h held) {
		for id, addrs := range h {
			n := w.networks[id]
			if n == nil {
				continue
			}
			for _, a := range addrs {
				if !slices.ContainsFunc(n.Subnets(), func(p netip.Prefix) bool { return p.Contains(a) }) {
					continue // of a network of that id that was removed
				}
				key := id + " " + a.String()
				if other, taken := owners[key]; taken {
					rt.Fatalf("%s and %s have %s", other, who, key)
				}
				owners[key] = who
			}
		}
	}
	for id, n := range w.nodes {
		claim(id, heldByNode(n))
	}
	for id, s := range w.services {
		claim(id, heldByService(s))
	}
	for id, t := range w.tasks {
		claim(id, heldByTask(t))
	}
	if d := cmp.Diff(w.computed().words(), w.state.words()); d != "" {
		rt.Fatalf("what was followed (+) is not what is computed (-):\n%s", d)
	}
}

// The cost of an address must not grow with how many are in use.
func BenchmarkTasks(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			net, err := Network(newNetwork("n", subnet("10.0.0.0/12")), slices.Values([]*api.Network(nil)), pools(24, "10.0.0.0/8"), 0)
			if err != nil {
				b.Fatal(err)
			}
			t := newTask("t", "n")
			for b.Loop() {
				s := NewState()
				s.SetNetwork(net)
				for range n {
					if c, _ := Task(t, nil, nil, s, time.Time{}); c.Networks[0].Addresses == nil {
						b.Fatal("no address")
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/task")
		})
	}
}
