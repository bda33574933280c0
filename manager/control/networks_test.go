package control

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func request(name string, configs ...network.IPAMConfig) *network.CreateRequest {
	return &network.CreateRequest{Name: name, Driver: "overlay", IPAM: &network.IPAM{Driver: "default", Config: configs}}
}

func TestNetworkCreateRefuses(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for name, c := range map[string]struct {
		change func(q *network.CreateRequest)
		class  api.Class
		says   string
	}{
		"name":         {func(q *network.CreateRequest) { q.Name = "a b" }, api.Invalid, "invalid network name"},
		"predefined":   {func(q *network.CreateRequest) { q.Name = "host" }, api.PermissionDenied, "predefined host network"},
		"driver":       {func(q *network.CreateRequest) { q.Driver = "weird" }, api.NotFound, `driver "weird"`},
		"macvlan":      {func(q *network.CreateRequest) { q.Driver = "macvlan" }, api.Invalid, "--config-from"},
		"bridge's own": {func(q *network.CreateRequest) { q.Driver = "bridge" }, api.Invalid, "--config-from"}, // with a subnet
		"two configurations": {func(q *network.CreateRequest) {
			q.Driver, q.ConfigFrom = "macvlan", &network.ConfigReference{Network: "c"}
		}, api.PermissionDenied, "user supplied configurations"},
		"configuration only": {func(q *network.CreateRequest) { q.ConfigOnly = true }, api.Invalid, "a node's own"},
		"route":              {func(q *network.CreateRequest) { q.IPAM.Config[0].Subnet = p("10.200.0.0/16") }, api.Conflict, "overlaps the route to 10.200.7.0/24"},
		"scope":              {func(q *network.CreateRequest) { q.Scope = "local" }, api.Invalid, "scope is swarm"},
		"host bits":          {func(q *network.CreateRequest) { q.IPAM.Config[0].Subnet = p("10.5.0.1/24") }, api.Invalid, "invalid subnet 10.5.0.1/24: it should be 10.5.0.0/24"},
		"gateway":            {func(q *network.CreateRequest) { q.IPAM.Config[0].Gateway = a("10.6.0.1") }, api.Invalid, "invalid gateway 10.6.0.1"},
		"broadcast":          {func(q *network.CreateRequest) { q.IPAM.Config[0].Gateway = a("10.5.0.255") }, api.Invalid, "invalid gateway 10.5.0.255: that address is its subnet's own"},
		"range":              {func(q *network.CreateRequest) { q.IPAM.Config[0].IPRange = p("10.6.0.0/28") }, api.Invalid, "invalid ip-range 10.6.0.0/28"},
		"aux": {func(q *network.CreateRequest) {
			q.IPAM.Config[0].AuxAddress = map[string]netip.Addr{"x": a("10.6.0.2")}
		}, api.Invalid, "invalid auxiliary address x=10.6.0.2"},
		"no subnet": {func(q *network.CreateRequest) { q.IPAM.Config[0] = network.IPAMConfig{Gateway: a("10.6.0.2")} }, api.Invalid, "needs a subnet"},
		"IPv6":      {func(q *network.CreateRequest) { q.IPAM.Config[0].Subnet = p("fd05::/64") }, api.Invalid, "IPv6 is not enabled"},
		"two": {func(q *network.CreateRequest) {
			q.IPAM.Config = append(q.IPAM.Config, network.IPAMConfig{Subnet: p("10.5.0.0/16")})
		}, api.Invalid, "subnets 10.5.0.0/24 and 10.5.0.0/16 overlap"},
		"many": {func(q *network.CreateRequest) {
			for i := range byte(64) {
				q.IPAM.Config = append(q.IPAM.Config, network.IPAMConfig{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, i, 0}), 24)})
			}
		}, api.Invalid, "65 subnets: at most 64 are allowed"},
		"overlap": {func(q *network.CreateRequest) { q.IPAM.Config[0].Subnet = p("10.0.0.0/16") }, api.Conflict, "subnet 10.0.0.0/16 and 10.0.0.0/24 of network ingress"},
		"mtu":     {func(q *network.CreateRequest) { q.Options = map[string]string{api.OptionMTU: "12"} }, api.Invalid, api.OptionMTU},
		"mtu of IPv6": {func(q *network.CreateRequest) {
			q.EnableIPv6, q.Options = new(true), map[string]string{api.OptionMTU: "1279"}
		}, api.Invalid, "with IPv6 an MTU must be 1280 bytes at least"},
		"vni": {func(q *network.CreateRequest) { q.Options = map[string]string{api.OptionVNIs: "4096,4097"} }, api.Invalid, api.OptionVNIs},
		"vnis": {func(q *network.CreateRequest) {
			q.IPAM.Config = append(q.IPAM.Config, network.IPAMConfig{Subnet: p("10.7.0.0/24")}, network.IPAMConfig{Subnet: p("fd05::/64")})
			q.EnableIPv6, q.Options = new(true), map[string]string{api.OptionVNIs: "5000,5001,5002"}
		}, api.Invalid, "one number for each IPv4 subnet at most, and there are 2"},
		"second vni taken": {func(q *network.CreateRequest) {
			q.IPAM.Config = append(q.IPAM.Config, network.IPAMConfig{Subnet: p("10.7.0.0/24")})
			q.Options = map[string]string{api.OptionVNIs: "5000,4096"}
		}, api.Conflict, "VXLAN id 4096 is already that of network ingress"},
		"second subnet's route": {func(q *network.CreateRequest) {
			q.IPAM.Config = append(q.IPAM.Config, network.IPAMConfig{Subnet: p("10.200.0.0/16")})
		}, api.Conflict, "overlaps the route to 10.200.7.0/24"},
		"second subnet's range": {func(q *network.CreateRequest) {
			q.IPAM.Config = append(q.IPAM.Config, network.IPAMConfig{Subnet: p("10.7.0.0/24"), IPRange: p("10.5.0.0/28")})
		}, api.Invalid, "invalid ip-range 10.5.0.0/28"},
		"vni taken":     {func(q *network.CreateRequest) { q.Options = map[string]string{api.OptionVNIs: "4096"} }, api.Conflict, "network ingress"},
		"option":        {func(q *network.CreateRequest) { q.Options = map[string]string{"com.docker.network.x": "1"} }, api.Invalid, "com.docker.network.x"},
		"encrypted":     {func(q *network.CreateRequest) { q.Options = map[string]string{"encrypted": "maybe"} }, api.Invalid, "encrypted"},
		"second mesh":   {func(q *network.CreateRequest) { q.Ingress = true }, api.Exists, "ingress network (ingress) already present"},
		"mesh for all":  {func(q *network.CreateRequest) { q.Ingress, q.Attachable = true, true }, api.Invalid, "cannot be attachable"},
		"configuration": {func(q *network.CreateRequest) { q.ConfigFrom = &network.ConfigReference{Network: "c"} }, api.Unimplemented, "--config-from"},
		"taken":         {func(q *network.CreateRequest) { q.Name = "INGRESS" }, api.Exists, "network with name INGRESS already exists"},
	} {
		f := setUp(t)
		q := request("n", network.IPAMConfig{Subnet: p("10.5.0.0/24")})
		c.change(q)
		_, err := f.NetworkCreate(t.Context(), q)
		if !api.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (%v), want %v: %q", name, err, api.ClassOf(err), c.class, c.says)
		}
	}
}

// A network that each node has for itself has nothing of the swarm but its name.
func TestNetworksOfNodes(t *testing.T) {
	f := setUp(t)
	made, err := f.NetworkCreate(t.Context(), &network.CreateRequest{Name: "lan", Driver: "macvlan", Scope: "swarm", Attachable: true, ConfigFrom: &network.ConfigReference{Network: "conf"}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := f.NetworkInspect(t.Context(), "lan", true)
	if err != nil || in.ID != made.ID || in.Driver != "macvlan" || in.Scope != "swarm" || in.ConfigFrom.Network != "conf" || len(in.IPAM.Config) != 0 || len(in.Options) != 0 {
		t.Fatalf("%+v, %v", in, err)
	}
	if _, err := f.NetworkCreate(t.Context(), &network.CreateRequest{Name: "plain", Driver: "bridge", Scope: "swarm"}); err != nil {
		t.Error("a bridge needs no configuration:", err)
	}
	if in, err := f.NetworkInspect(t.Context(), "plain", false); err != nil || in.Driver != "bridge" || in.Scope != "swarm" {
		t.Errorf("%+v, %v", in, err)
	}
	s := spec("s")
	s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "lan"}}
	f.create(s)
	refused(t, f.NetworkRemove(t.Context(), "lan"), api.Conflict, "in use by service s")
}

// An update that is under way may fail, and be rolled back by itself.
func TestNetworksOfServicesBeingUpdated(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	if _, err := f.NetworkCreate(ctx, &network.CreateRequest{Name: "back"}); err != nil {
		t.Fatal(err)
	}
	s := spec("s")
	s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back"}}
	id := f.create(s).ID
	set := func(state swarm.UpdateState, change func(o *api.Service)) {
		t.Helper()
		if _, err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error {
			o := *store.Get[*api.Service](tx, id)
			change(&o)
			o.UpdateStatus = &swarm.UpdateStatus{State: state}
			return store.Put(tx, &o)
		}); err != nil {
			t.Fatal(err)
		}
	}
	set(swarm.UpdateStateUpdating, func(o *api.Service) {
		was := o.Spec
		o.PreviousSpec, o.Spec.TaskTemplate.Networks = &was, nil
	})
	refused(t, f.NetworkRemove(ctx, "back"), api.Conflict, "network back is in use by service s (as it was before its update, which is not over)")
	set(swarm.UpdateStateCompleted, func(*api.Service) {})
	if err := f.NetworkRemove(ctx, "back"); err != nil {
		t.Fatal(err)
	}
}

// Containers that users run on nodes are users of a network like others.
func TestContainersInNetworks(t *testing.T) {
	f := setUp(t)
	made, err := f.NetworkCreate(t.Context(), &network.CreateRequest{Name: "web", Attachable: true})
	if err != nil {
		t.Fatal(err)
	}
	task := &api.Task{
		ID: "t", NodeID: "node", Spec: &api.TaskSpec{Container: &api.AttachedContainer{Name: "db"}, TaskSpec: swarm.TaskSpec{
			NetworkAttachmentSpec: &swarm.NetworkAttachmentSpec{ContainerID: "c"}, Networks: []swarm.NetworkAttachmentConfig{{Target: made.ID}},
		}},
		Status: swarm.TaskStatus{State: swarm.TaskStateRunning}, DesiredState: swarm.TaskStateRunning,
		Networks: []api.NetworkAttachment{{NetworkID: made.ID, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.9/24")}}},
	}
	if _, err := f.cfg.Store.Update(t.Context(), func(tx *store.Tx) error { return store.Create(tx, task) }); err != nil {
		t.Fatal(err)
	}
	refused(t, f.NetworkRemove(t.Context(), "web"), api.Conflict, "network web is in use by container db on node node")
	if removed, err := f.NetworkPrune(t.Context(), nil); err != nil || len(removed) != 0 {
		t.Error(removed, err)
	}
	if l, err := f.NetworkList(t.Context(), api.Filters{"dangling": {"true"}}); err != nil || len(l) != 0 {
		t.Error(l, err)
	}
	in, err := f.NetworkInspect(t.Context(), "web", true)
	if err != nil || len(in.Peers) != 1 || len(in.Services[""].Tasks) != 1 || in.Services[""].Tasks[0].Name != "db" || in.Services[""].Tasks[0].EndpointIP.String() != "10.0.1.9" {
		t.Errorf("%+v, %v", in, err)
	}
	for filter, want := range map[string]int{"": 0, "attachment": 1} {
		q := api.Filters{}
		if filter != "" {
			q = api.Filters{"runtime": {filter}, "name": {"db"}}
		}
		if l, err := f.TaskList(t.Context(), q); err != nil || len(l) != want {
			t.Errorf("runtime %q: %d tasks, %v; want %d", filter, len(l), err, want)
		}
	}
}

func TestNetworkLife(t *testing.T) {
	f := setUp(t)
	made, err := f.NetworkCreate(t.Context(), &network.CreateRequest{Name: "web", Scope: "swarm", EnableIPv6: new(true), Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := f.NetworkInspect(t.Context(), "web", false)
	if err != nil || in.ID != made.ID || in.Driver != "overlay" || in.Scope != "swarm" || len(in.IPAM.Config) != 2 ||
		in.IPAM.Config[0].Subnet.String() != "10.0.1.0/24" || in.IPAM.Config[0].Gateway.String() != "10.0.1.1" || in.IPAM.Config[1].Subnet.Bits() != 64 {
		t.Fatalf("%+v, %v", in, err)
	}
	s := spec("s")
	s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "web"}}
	if got := f.create(s).Spec.TaskTemplate.Networks[0].Target; got != made.ID {
		t.Errorf("the service names %s, want the id %s", got, made.ID)
	}
	for name, targets := range map[string][]string{"nosuch": {"nosuch"}, "explicitly attached": {"ingress"}, "can't have other networks": {"web", "host"}} {
		s := spec("t")
		for _, n := range targets {
			s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n})
		}
		_, err := f.ServiceCreate(t.Context(), s, ServiceOptions{})
		refused(t, err, api.Invalid, name)
	}
	twice := spec("twice")
	twice.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{
		{Target: "web", Aliases: []string{"a", "b"}, DriverOpts: map[string]string{"x": "1", "y": "1"}},
		{Target: made.ID, Aliases: []string{"b", "c"}, DriverOpts: map[string]string{"y": "2"}},
	}
	if l := f.create(twice).Spec.TaskTemplate.Networks; len(l) != 1 || l[0].Target != made.ID || !slices.Equal(l[0].Aliases, []string{"a", "b", "c"}) || !maps.Equal(l[0].DriverOpts, map[string]string{"x": "1", "y": "2"}) {
		t.Errorf("a network named twice: %+v", l)
	}
	if err := f.ServiceRemove(t.Context(), "twice"); err != nil {
		t.Fatal(err)
	}
	refused(t, f.NetworkRemove(t.Context(), "web"), api.Conflict, "network web is in use by service s")
	if removed, err := f.NetworkPrune(t.Context(), nil); err != nil || len(removed) != 0 {
		t.Error(removed, err)
	}
	for filter, want := range map[string]int{"dangling": 0, "name": 1, "label": 1, "type": 2, "driver": 2} {
		value := map[string]string{"dangling": "true", "name": "^w.b$", "label": "a=b", "type": "custom", "driver": "overlay"}[filter]
		l, err := f.NetworkList(t.Context(), api.Filters{filter: {value}})
		if err != nil || len(l) != want {
			t.Errorf("filter %s=%s: %d networks, %v; want %d", filter, value, len(l), err, want)
		}
	}
	if err := f.ServiceRemove(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if removed, err := f.NetworkPrune(t.Context(), api.Filters{"until": {"1h"}}); err != nil || len(removed) != 0 {
		t.Error(removed, err)
	}
	if removed, err := f.NetworkPrune(t.Context(), nil); err != nil || len(removed) != 1 {
		t.Error(removed, err)
	}
	if _, err := f.NetworkCreate(t.Context(), request("web")); err != nil {
		t.Error("the name and the subnet of a network that was removed:", err)
	}
}

func TestIngressNetwork(t *testing.T) {
	f := setUp(t)
	published := spec("p")
	published.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	f.create(published)
	refused(t, f.NetworkRemove(t.Context(), "ingress"), api.Conflict, "because service p depends on it")
	if err := f.ServiceRemove(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if err := f.NetworkRemove(t.Context(), "ingress"); err != nil {
		t.Fatal(err)
	}
	_, err := f.ServiceCreate(t.Context(), published, ServiceOptions{})
	refused(t, err, api.Conflict, "no ingress network is present")
	q := request("mesh", network.IPAMConfig{Subnet: netip.MustParsePrefix("10.11.0.0/16")})
	q.Ingress = true
	if _, err := f.NetworkCreate(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	f.create(published)
	refused(t, f.NetworkRemove(t.Context(), "host"), api.PermissionDenied, "pre-defined")
}
