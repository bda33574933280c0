package network_test

import (
	"net/netip"
	"strings"
	"testing"

	dnet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func macvlanRequest(name, subnet string) *dnet.CreateRequest {
	return &dnet.CreateRequest{
		Name: name, Driver: "macvlan", Options: map[string]string{"parent": "up0"},
		IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{{Subnet: netip.MustParsePrefix(subnet)}}},
	}
}

func configRequest(name, subnet string) *dnet.CreateRequest {
	q := macvlanRequest(name, subnet)
	q.Driver, q.ConfigOnly = "bridge", true
	return q
}

func TestMacvlan(t *testing.T) {
	w := newNode(t)
	for says, change := range map[string]func(q *dnet.CreateRequest){
		"needs a device":      func(q *dnet.CreateRequest) { q.Options = nil },
		"the loopback device": func(q *dnet.CreateRequest) { q.Options["parent"] = "lo" },
		"no such device":      func(q *dnet.CreateRequest) { q.Options["parent"] = "eth7" },
		"must be one of":      func(q *dnet.CreateRequest) { q.Options["macvlan_mode"] = "odd" },
		"is not served by":    func(q *dnet.CreateRequest) { q.Options["com.docker.network.x"] = "1" },
		"ipvlan is not":       func(q *dnet.CreateRequest) { q.Driver = "ipvlan" },
		"bridge or macvlan":   func(q *dnet.CreateRequest) { q.Driver = "weird" },
		"it should be":        func(q *dnet.CreateRequest) { q.IPAM.Config[0].Subnet = netip.MustParsePrefix("10.99.0.7/24") },
		"scope of a macvlan":  func(q *dnet.CreateRequest) { q.Scope = "swarm" },
	} {
		q := macvlanRequest("m", "10.99.0.0/24")
		change(q)
		if _, err := w.Create(t.Context(), q); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	// Its subnet is that of the device: the host's route is no hindrance.
	if _, err := w.Create(t.Context(), macvlanRequest("m", "10.99.0.0/24")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Create(t.Context(), macvlanRequest("m2", "10.99.0.0/25")); !api.Is(err, api.PermissionDenied) {
		t.Error("overlapping:", err)
	}
	port, _ := dnet.PortFrom(80, "tcp")
	j, err := w.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"m": {}}, dnet.PortMap{port: {{HostPort: "8080"}}})
	if err != nil {
		t.Fatal(err)
	}
	if e := j.Endpoints["m"]; e.IPAddress.String() != "10.99.0.2" || e.Gateway.String() != "10.99.0.1" {
		t.Errorf("%+v", e)
	}
	c := w.fake.There()
	if f := c.Sandboxes["c1"].Interfaces[0]; f.Parent != "up0" || f.Bridge != "" || f.MTU != 0 || len(c.Ports) != 0 || !strings.Contains(c.String(), "on device up0") {
		t.Errorf("%s", c)
	}
	w.restart("c1")
	if d := w.fake.There().Sandboxes["c1"]; d == nil || d.Interfaces[0].Parent != "up0" {
		t.Errorf("after a restart: %v", d)
	}
	if err := w.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
}

func TestConfigurationNetworks(t *testing.T) {
	w := newNode(t)
	q := configRequest("conf", "10.99.0.0/24")
	q.Labels = map[string]string{"a": "b"}
	if _, err := w.Create(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	in, err := w.Inspect("conf")
	if err != nil || !in.ConfigOnly || in.Driver != "null" || in.IPAM.Config[0].Subnet.String() != "10.99.0.0/24" {
		t.Fatal(in, err)
	}
	if _, err := w.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"conf": nil}, nil); !api.Is(err, api.PermissionDenied) {
		t.Error(err)
	}
	from := func(name, conf string, change ...func(q *dnet.CreateRequest)) error {
		q := &dnet.CreateRequest{Name: name, Driver: "macvlan", ConfigFrom: &dnet.ConfigReference{Network: conf}}
		for _, c := range change {
			c(q)
		}
		_, err := w.Create(t.Context(), q)
		return err
	}
	for says, err := range map[string]error{
		"user supplied configurations": from("m", "conf", func(q *dnet.CreateRequest) { q.Options = map[string]string{"parent": "up0"} }),
		`"nosuch" not found`:           from("m", "nosuch"),
		"is not a configuration":       from("m", "bridge"),
		"from another":                 from("m", "conf", func(q *dnet.CreateRequest) { q.ConfigOnly = true }),
	} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	if err := from("m", "conf"); err != nil {
		t.Fatal(err)
	}
	if in, err := w.Inspect("m"); err != nil || in.Driver != "macvlan" || in.ConfigFrom.Network != "conf" || in.Labels["a"] != "b" || in.Options["parent"] != "up0" {
		t.Error(in, err)
	}
	if err := w.Remove(t.Context(), "conf"); !api.Is(err, api.PermissionDenied) || !strings.Contains(err.Error(), "in use by network m") {
		t.Error(err)
	}
	w.restart()
	if err := w.Remove(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}

	// A network of the swarm that each node has for itself.
	o := &api.Network{Network: swarm.Network{ID: "net9", DriverState: swarm.Driver{Name: "macvlan"}}}
	o.Spec.Name, o.Spec.ConfigFrom = "lan", &dnet.ConfigReference{Network: "conf"}
	release, err := w.UseFor("t1", []*api.Network{o})
	if err != nil {
		t.Fatal(err)
	}
	j, err := w.Join(t.Context(), "t1", map[string]*dnet.EndpointSettings{"net9": {}}, nil)
	if err != nil || j.Endpoints["lan"].IPAddress.String() != "10.99.0.2" {
		t.Fatal(j, err)
	}
	release()
	if in, err := w.Inspect("lan"); err != nil || in.Scope != "swarm" || len(in.Containers) != 1 {
		t.Error(in, err)
	}
	if err := w.Remove(t.Context(), "lan"); !api.Is(err, api.NotFound) {
		t.Error("only managers remove it:", err)
	}
	w.restart("t1")
	if in, err := w.Inspect("lan"); err != nil || len(in.Containers) != 1 {
		t.Error("after a restart:", in, err)
	}
	if err := w.Leave(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Inspect("lan"); !api.Is(err, api.NotFound) {
		t.Error("nobody needs it any more:", err)
	}
	if err := w.Remove(t.Context(), "conf"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Use([]*api.Network{o}); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), `configuration network "conf" not found on this node`) {
		t.Error(err)
	}
}

// A bridge of the swarm without a configuration has a subnet of each node's choice; a
// macvlan has no device then.
func TestBridgeOfTheSwarm(t *testing.T) {
	w := newNode(t)
	o := &api.Network{Network: swarm.Network{ID: "net9", DriverState: swarm.Driver{Name: "bridge"}}}
	o.Spec.Name = "plain"
	release, err := w.UseFor("t1", []*api.Network{o})
	if err != nil {
		t.Fatal(err)
	}
	j, err := w.Join(t.Context(), "t1", map[string]*dnet.EndpointSettings{"net9": {}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	in, err := w.Inspect("plain")
	if err != nil || in.Scope != "swarm" || len(in.IPAM.Config) != 1 || !in.IPAM.Config[0].Subnet.Contains(j.Endpoints["plain"].IPAddress) {
		t.Error(in, j.Endpoints["plain"], err)
	}
	release()
	w.restart("t1")
	if err := w.Leave(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Inspect("plain"); !api.Is(err, api.NotFound) {
		t.Error("nobody needs it any more:", err)
	}
	o.DriverState.Name = "macvlan"
	if _, err := w.Use([]*api.Network{o}); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "needs a configuration network on each node") {
		t.Error(err)
	}
}

// A route of the host in the way of an overlay's subnet is said, not suffered.
func TestRoutesInTheWay(t *testing.T) {
	w := newNode(t)
	_, err := w.Use([]*api.Network{overlayNetwork("net1", "web", "10.99.0.0/16")})
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "network web: its subnet 10.99.0.0/16 overlaps the route to 10.99.0.0/24") {
		t.Error(err)
	}
}

// Containers that get their addresses from somebody else, by DHCP say.
func TestNullIPAM(t *testing.T) {
	w := newNode(t)
	null := func(name string) *dnet.CreateRequest {
		q := macvlanRequest(name, "10.99.0.0/24")
		q.IPAM = &dnet.IPAM{Driver: "null"}
		return q
	}
	for says, change := range map[string]func(q *dnet.CreateRequest){
		"it is for macvlan networks":       func(q *dnet.CreateRequest) { q.Driver = "bridge" },
		"does not handle specific address": func(q *dnet.CreateRequest) { q.IPAM.Config = macvlanRequest("m", "10.99.0.0/24").IPAM.Config },
		"nor --ipv6":                       func(q *dnet.CreateRequest) { q.EnableIPv6 = new(true) },
		`"other" not found`:                func(q *dnet.CreateRequest) { q.IPAM.Driver = "other" },
	} {
		q := null("m")
		change(q)
		if _, err := w.Create(t.Context(), q); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	conf := null("conf")
	conf.ConfigOnly = true
	made := &dnet.CreateRequest{Name: "from", Driver: "macvlan", ConfigFrom: &dnet.ConfigReference{Network: "conf"}}
	for _, q := range []*dnet.CreateRequest{null("m"), conf, made} {
		if _, err := w.Create(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Create(t.Context(), &dnet.CreateRequest{Name: "b", ConfigFrom: &dnet.ConfigReference{Network: "conf"}}); !api.Is(err, api.Invalid) {
		t.Error("a bridge from it:", err)
	}
	if _, err := w.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"m": {IPAMConfig: &dnet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.99.0.5")}}}, nil); !api.Is(err, api.Invalid) {
		t.Error("an address that nobody gives:", err)
	}
	mac := ""
	for _, name := range []string{"m", "from", "m"} {
		e := w.join("c1", name).Endpoints[name]
		f := w.fake.There().Sandboxes["c1"].Interfaces[0]
		if len(f.Addresses) != 0 || f.Parent != "up0" || e.IPAddress.IsValid() || e.Gateway.IsValid() || e.MacAddress.String() != f.MAC {
			t.Errorf("%s: %+v, %+v", name, f, e)
		}
		if name == "m" && mac != "" && f.MAC != mac {
			t.Errorf("another MAC address: %s, %s", mac, f.MAC)
		}
		if name == "m" {
			mac = f.MAC
		}
		w.restart("c1")
		if err := w.Leave(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
	}
	if in, err := w.Inspect("from"); err != nil || in.IPAM.Driver != "null" || len(in.IPAM.Config) != 0 {
		t.Errorf("%+v, %v", in, err)
	}
}
