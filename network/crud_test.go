package network_test

import (
	"net/netip"
	"strings"
	"testing"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

func ipam(subnet, gateway, within string) *dnet.IPAM {
	var c dnet.IPAMConfig
	if subnet != "" {
		c.Subnet = netip.MustParsePrefix(subnet)
	}
	if gateway != "" {
		c.Gateway = netip.MustParseAddr(gateway)
	}
	if within != "" {
		c.IPRange = netip.MustParsePrefix(within)
	}
	return &dnet.IPAM{Config: []dnet.IPAMConfig{c}}
}

func TestCreateRefuses(t *testing.T) {
	n := newNode(t)
	n.create(dnet.CreateRequest{Name: "taken", IPAM: ipam("10.5.0.0/16", "", "")})
	off := false
	for _, c := range []struct {
		name  string
		q     dnet.CreateRequest
		class api.Class
		text  string
	}{
		{"no name", dnet.CreateRequest{}, api.Invalid, "name is empty"},
		{"bad name", dnet.CreateRequest{Name: "a b"}, api.Invalid, "invalid network name"},
		{"long name", dnet.CreateRequest{Name: strings.Repeat("x", 256)}, api.Invalid, "at most 255"},
		{"predefined", dnet.CreateRequest{Name: "bridge"}, api.PermissionDenied, "operation is not permitted on predefined bridge network"},
		{"taken", dnet.CreateRequest{Name: "taken"}, api.Exists, "network with name taken already exists"},
		{"driver", dnet.CreateRequest{Name: "n", Driver: "weird"}, api.NotFound, "weird"},
		{"second host", dnet.CreateRequest{Name: "n", Driver: "host"}, api.PermissionDenied, "only one instance of \"host\" network is allowed"},
		{"no family", dnet.CreateRequest{Name: "n", EnableIPv4: &off}, api.Invalid, "IPv4 or IPv6"},
		{"overlap", dnet.CreateRequest{Name: "n", IPAM: ipam("10.5.1.0/24", "", "")}, api.PermissionDenied, "Pool overlaps with other one on this address space: 10.5.1.0/24 and 10.5.0.0/16 of network taken"},
		{"the host's own link", dnet.CreateRequest{Name: "n", IPAM: ipam("10.99.0.0/25", "", "")}, api.PermissionDenied, "overlaps 10.99.0.0/24 of this host's device up0"},
		{"scope", dnet.CreateRequest{Name: "n", Scope: "global"}, api.Invalid, "the scope of a bridge network of this node is local, not \"global\""},
		{"host bits", dnet.CreateRequest{Name: "n", IPAM: ipam("10.6.0.1/24", "", "")}, api.Invalid, "it should be 10.6.0.0/24"},
		{"gateway outside", dnet.CreateRequest{Name: "n", IPAM: ipam("10.6.0.0/24", "10.7.0.1", "")}, api.Invalid, "gateway 10.7.0.1"},
		{"range outside", dnet.CreateRequest{Name: "n", IPAM: ipam("10.6.0.0/24", "", "10.7.0.0/25")}, api.Invalid, "ip-range"},
		{"no subnet", dnet.CreateRequest{Name: "n", IPAM: ipam("", "10.7.0.1", "")}, api.Invalid, "no subnet"},
		{"IPv6 off", dnet.CreateRequest{Name: "n", IPAM: ipam("fd00::/64", "", "")}, api.Invalid, "IPv6 is not enabled"},
		{"tiny", dnet.CreateRequest{Name: "n", IPAM: ipam("10.6.0.1/32", "", "")}, api.Invalid, "no room"},
		{"loopback", dnet.CreateRequest{Name: "n", IPAM: ipam("127.5.0.0/16", "", "")}, api.Invalid, "can't have such addresses"},
		{"mtu", dnet.CreateRequest{Name: "n", Options: map[string]string{"com.docker.network.driver.mtu": "x"}}, api.Invalid, "mtu"},
		{"mtu of IPv6", dnet.CreateRequest{Name: "n", EnableIPv6: new(true), Options: map[string]string{"com.docker.network.driver.mtu": "1279"}}, api.Invalid, "with IPv6 its MTU must be 1280 bytes at least, and is 1279"},
		{"option", dnet.CreateRequest{Name: "n", Options: map[string]string{"com.docker.network.bridge.nope": "x"}}, api.Invalid, "is not served"},
		{"device", dnet.CreateRequest{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "sixteen-letters-"}}, api.Invalid, "device name"},
		{"device taken", dnet.CreateRequest{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "legion0"}}, api.PermissionDenied, "networks have same bridge name"},
		{"not a bridge", dnet.CreateRequest{Name: "n", Options: map[string]string{"com.docker.network.bridge.name": "up0"}}, api.Invalid, "is not a bridge"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := n.Create(t.Context(), &c.q)
			if !api.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	if l, err := n.List(nil); err != nil || len(l) != 4 {
		t.Errorf("left behind: %v, %v", l, err)
	}
}

func TestCreate(t *testing.T) {
	n := newNode(t)
	on := true
	id := n.create(dnet.CreateRequest{
		Name: "web", EnableIPv6: &on, IPAM: ipam("10.5.0.0/24", "", "10.5.0.128/25"),
		Options: map[string]string{"com.docker.network.driver.mtu": "1300", "com.docker.network.bridge.name": "web0", "com.docker.network.bridge.enable_icc": "false"},
	})
	b := n.fake.There().Bridges["web0"]
	if b == nil || b.MTU != 1300 || !b.Isolated || !b.Masquerade || b.Addresses[0].String() != "10.5.0.1/24" || len(b.Addresses) != 2 {
		t.Fatalf("the bridge is %+v", b)
	}
	e, err := n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{id[:10]: {DNSNames: []string{"one"}}}, nil)
	if err != nil || e.Endpoints["web"].IPAddress.String() != "10.5.0.128" || !e.Endpoints["web"].GlobalIPv6Address.Is6() {
		t.Fatalf("got %+v, %v", e, err)
	}
	r, err := n.Inspect("web")
	if err != nil || r.Containers["c1"].Name != "one" || r.Containers["c1"].IPv4Address.String() != "10.5.0.128/24" {
		t.Errorf("inspect: %+v, %v", r, err)
	}
	if err := n.Remove(t.Context(), "web"); !api.Is(err, api.PermissionDenied) || !strings.Contains(err.Error(), "name:one") {
		t.Errorf("removed in use: %v", err)
	}
	if err := n.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(t.Context(), "web"); !api.Is(err, api.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if err := n.Remove(t.Context(), "host"); !api.Is(err, api.PermissionDenied) {
		t.Errorf("removed host: %v", err)
	}
	if n.fake.There().Bridges["web0"] != nil {
		t.Error("the bridge is left")
	}
	n.restart()
	if _, err := n.Inspect("web"); !api.Is(err, api.NotFound) {
		t.Errorf("back after a restart: %v", err)
	}
}

func TestStaticAddresses(t *testing.T) {
	n := newNode(t)
	n.create(dnet.CreateRequest{Name: "web", IPAM: ipam("10.5.0.0/24", "", "")})
	join := func(id, net, ip string) (*network.Joined, error) {
		return n.Join(t.Context(), id, map[string]*dnet.EndpointSettings{net: {IPAMConfig: &dnet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(ip)}}}, nil)
	}
	if j, err := join("c1", "web", "10.5.0.7"); err != nil || j.Endpoints["web"].IPAddress.String() != "10.5.0.7" {
		t.Errorf("%+v, %v", j, err)
	}
	for _, c := range []struct{ net, ip, text string }{
		{"web", "10.5.0.7", "Address already in use"},
		{"web", "10.5.0.1", "Address already in use"},
		{"web", "10.5.0.255", "subnet's own"},
		{"web", "10.6.0.1", "not in its subnet"},
		{"bridge", "172.17.0.9", "user defined networks only"},
		{"none", "172.17.0.9", "user defined networks only"},
	} {
		early := n.CheckAddresses(c.net, &dnet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(c.ip)})
		if never := c.text == "not in its subnet" || c.text == "user defined networks only"; (early != nil) != never {
			t.Errorf("%s in %s before it is taken: %v", c.ip, c.net, early)
		}
		if _, err := join("c2", c.net, c.ip); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s in %s: %v", c.ip, c.net, err)
		}
	}
	for i := range 5 { // the pool goes past what is taken
		if j := n.join("d"+string(rune('0'+i)), "web"); j.Endpoints["web"].IPAddress.String() == "10.5.0.7" {
			t.Error("given out twice")
		}
	}
}

func TestListAndPrune(t *testing.T) {
	n := newNode(t)
	n.create(dnet.CreateRequest{Name: "used", Labels: map[string]string{"a": "1"}})
	n.create(dnet.CreateRequest{Name: "idle", Labels: map[string]string{"a": "1"}})
	n.create(dnet.CreateRequest{Name: "other"})
	n.join("c1", "used")
	byName, ok := n.Known("used")
	if byID, also := n.Known(byName.ID); !ok || !also || byID.Name != "used" || byID.Driver != "bridge" {
		t.Errorf("%+v and %+v", byName, byID)
	}
	if got, ok := n.Known("nosuch"); ok {
		t.Errorf("%+v", got)
	}
	names := func(f api.Filters) string {
		t.Helper()
		l, err := n.List(f)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, x := range l {
			s = append(s, x.Name)
		}
		return strings.Join(s, " ")
	}
	for _, c := range []struct {
		f    api.Filters
		want string
	}{
		{nil, "bridge host idle none other used"},
		{api.Filters{"label": {"a=1"}}, "idle used"},
		{api.Filters{"type": {"builtin"}}, "bridge host none"},
		{api.Filters{"driver": {"null", "host"}}, "host none"},
		{api.Filters{"dangling": {"true"}}, "idle other"},
		{api.Filters{"name": {"us", "th"}}, "other used"},
		{api.Filters{"name": {"^o", "t$"}}, "host other"},
		{api.Filters{"name": {"["}}, ""},
		{api.Filters{"scope": {"swarm"}}, ""},
	} {
		if got := names(c.f); got != c.want {
			t.Errorf("%v: %q", c.f, got)
		}
	}
	if _, err := n.List(api.Filters{"nope": {"x"}}); !api.Is(err, api.Invalid) {
		t.Errorf("an unknown filter: %v", err)
	}
	r, err := n.Prune(t.Context(), api.Filters{"label": {"a"}})
	if err != nil || strings.Join(r.NetworksDeleted, " ") != "idle" {
		t.Errorf("pruned %v, %v", r, err)
	}
	n.create(dnet.CreateRequest{Name: "settings", ConfigOnly: true})
	n.create(dnet.CreateRequest{Name: "docker_gwbridge"})
	if r, err = n.Prune(t.Context(), nil); err != nil || strings.Join(r.NetworksDeleted, " ") != "other" {
		t.Errorf("pruned %v, %v", r, err)
	}
}

func TestDefaultBridge(t *testing.T) {
	foreign := network.Device{Bridge: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24")}}
	n := newNode(t)
	n.fake.SetHost(network.Host{
		MTU: 1400, Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.3.0/24"), netip.MustParsePrefix("172.18.0.0/15")},
		Devices: map[string]network.Device{"legion0": {Bridge: true, Owner: "other"}, "br0": foreign, "eth0": {}},
	})
	bridge := func(change func(*network.Options)) (*network.Bridge, error) {
		o := n.o
		o.Dir, o.RuntimeDir = t.TempDir(), t.TempDir()
		change(&o)
		if err := n.Close(t.Context(), true); err != nil {
			return nil, err
		}
		x, err := network.New(t.Context(), o)
		if err != nil {
			return nil, err
		}
		n.Networks = x
		if err := x.Keep(t.Context(), nil); err != nil {
			return nil, err
		}
		for _, b := range n.fake.There().Bridges {
			return b, nil
		}
		return &network.Bridge{}, nil
	}
	for _, c := range []struct {
		name   string
		change func(*network.Options)
		want   string
	}{
		{"another's device and routes are avoided", func(*network.Options) {}, "bridge legion1 172.20.0.1/16 mtu 1400 masquerade\n"},
		{"address", func(o *network.Options) { o.BIP = netip.MustParsePrefix("10.7.0.9/24") }, "bridge legion1 10.7.0.9/24 mtu 1400 masquerade\n"},
		{"IPv6", func(o *network.Options) { o.BIP6 = netip.MustParsePrefix("fd07::1/64") }, "bridge legion1 172.20.0.1/16 fd07::1/64 mtu 1400 masquerade\n"},
		{"somebody's bridge", func(o *network.Options) { o.Bridge = "br0" }, "bridge br0 10.8.0.1/24 mtu 1400 masquerade external\n"},
		{"a new name", func(o *network.Options) { o.Bridge = "mine"; o.MTU = 1280; o.NoICC = true; o.NoMasquerade = true }, "bridge mine 172.20.0.1/16 mtu 1280 isolated\n"},
		{"another node's bridge", func(o *network.Options) { o.Bridge = "legion0" }, "belongs to another node"},
		{"not a bridge", func(o *network.Options) { o.Bridge = "eth0" }, "is not a bridge"},
		{"fixed-cidr", func(o *network.Options) { o.FixedCIDR = netip.MustParsePrefix("10.0.0.0/24") }, "fixed-cidr"},
		{"no bridge", func(o *network.Options) { o.NoBridge = true }, "bridge \n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := bridge(c.change)
			if err != nil {
				if !strings.Contains(err.Error(), c.want) {
					t.Error(err)
				}
			} else if b.String() != c.want {
				t.Errorf("got %s", b)
			}
		})
	}
}
