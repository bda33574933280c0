package network_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	dnet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func subnetsOf(l ...string) []dnet.IPAMConfig {
	var c []dnet.IPAMConfig
	for _, s := range l {
		c = append(c, dnet.IPAMConfig{Subnet: netip.MustParsePrefix(s)})
	}
	return c
}

// A bridge has one subnet of each family, a device of the host any number.
func TestWhoHasSeveralSubnets(t *testing.T) {
	w := newNode(t)
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprintf("10.7.%d.0/24", i)
	}
	for says, c := range map[string]struct {
		driver  string
		subnets []string
		class   api.Class
	}{
		"bridge driver doesn't support multiple subnets": {"bridge", []string{"10.7.0.0/24", "10.8.0.0/24"}, api.PermissionDenied},
		"and fd02::/64 is one too many":                  {"bridge", []string{"10.7.0.0/24", "fd01::/64", "fd02::/64"}, api.PermissionDenied},
		"subnets 10.7.0.0/24 and 10.7.0.0/16":            {"macvlan", []string{"10.7.0.0/24", "10.7.0.0/16"}, api.PermissionDenied},
		"at most 64 subnets":                             {"macvlan", many, api.Invalid},
	} {
		q := macvlanRequest("n", "10.9.0.0/24")
		if q.IPAM.Config, q.EnableIPv6 = subnetsOf(c.subnets...), new(true); c.driver == "bridge" {
			q.Driver, q.Options = c.driver, nil
		}
		if _, err := w.Create(t.Context(), q); !api.Is(err, c.class) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v (%v), want %q", err, api.ClassOf(err), says)
		}
	}
	q := configRequest("c", "10.9.0.0/24")
	q.IPAM.Config = subnetsOf(many...)
	if _, err := w.Create(t.Context(), q); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
}

// Containers on a device of the host are in the first subnet that has room, or in the
// one of the address that is asked for, and leave by the gateway of that.
func TestMacvlanGoesOnWithTheNextSubnet(t *testing.T) {
	w := newNode(t)
	q := macvlanRequest("m", "10.9.0.0/24")
	q.IPAM.Config, q.EnableIPv6 = subnetsOf("10.7.0.0/30", "10.8.0.0/29", "fd01::/64", "fd02::/64"), new(true)
	q.IPAM.Config[1].Gateway = netip.MustParseAddr("10.8.0.6")
	if _, err := w.Create(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	join := func(id, ip, ip6 string) (*dnet.EndpointSettings, error) {
		e := &dnet.EndpointSettings{IPAMConfig: &dnet.EndpointIPAMConfig{}}
		if ip != "" {
			e.IPAMConfig.IPv4Address = netip.MustParseAddr(ip)
		}
		if ip6 != "" {
			e.IPAMConfig.IPv6Address = netip.MustParseAddr(ip6)
		}
		j, err := w.Join(t.Context(), id, map[string]*dnet.EndpointSettings{"m": e}, nil)
		if err != nil {
			return nil, err
		}
		return j.Endpoints["m"], nil
	}
	for i, c := range []struct{ ip, ip6, want string }{
		{"10.8.0.3", "fd02::9", "10.8.0.3/29 by 10.8.0.6, fd02::9/64 by fd02::1"},
		{"", "", "10.7.0.2/30 by 10.7.0.1, fd01::2/64 by fd01::1"},
		{"", "", "10.8.0.1/29 by 10.8.0.6, fd01::3/64 by fd01::1"},
		{"", "", "10.8.0.2/29 by 10.8.0.6, fd01::4/64 by fd01::1"},
	} {
		e, err := join(fmt.Sprint("c", i), c.ip, c.ip6)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%s/%d by %s, %s/%d by %s", e.IPAddress, e.IPPrefixLen, e.Gateway, e.GlobalIPv6Address, e.GlobalIPv6PrefixLen, e.IPv6Gateway); got != c.want {
			t.Errorf("%d: %s, want %s", i, got, c.want)
		}
	}
	if s := w.fake.There().Sandboxes["c0"]; s.Gateway4.String() != "10.8.0.6" || len(s.Interfaces[0].Routes) != 0 {
		t.Errorf("%s", s)
	}
	if _, err := join("c9", "10.9.0.1", ""); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "in none of its subnets [10.7.0.0/30 10.8.0.0/29 fd01::/64 fd02::/64]") {
		t.Error(err)
	}
	if _, err := join("c9", "10.8.0.3", ""); !api.Is(err, api.PermissionDenied) {
		t.Error(err)
	}
	for i := range 2 {
		if _, err := join(fmt.Sprint("d", i), "", ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := join("c9", "", ""); !api.Is(err, api.ResourceExhausted) ||
		!strings.Contains(err.Error(), "any of its subnets 10.7.0.0/30 (10.7.0.1 to 10.7.0.2, 2 in use), 10.8.0.0/29 (10.8.0.1 to 10.8.0.6, 6 in use);") {
		t.Error(err)
	}
	if in, err := w.Inspect("m"); err != nil || len(in.IPAM.Config) != 4 || len(in.Status.IPAM.Subnets) != 4 {
		t.Errorf("%+v, %v", in, err)
	}
	w.restart("c0", "c1", "c2", "c3", "d0", "d1") // who is where is found again
	if _, err := join("c9", "", ""); !api.Is(err, api.ResourceExhausted) {
		t.Error(err)
	}
	for _, id := range []string{"c0", "c1"} {
		if err := w.Leave(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if e, err := join("c9", "", ""); err != nil || e.IPAddress.String() != "10.7.0.2" {
		t.Error(e, err)
	}
}

// withSubnets is a network of the swarm with a subnet 10.0.9.0/24 and more.
func withSubnets(id string, more ...string) *api.Network {
	o := overlayNetwork(id, id, "10.0.9.0/24")
	o.Spec.IPv6Enabled = true
	for _, s := range more {
		p := netip.MustParsePrefix(s)
		o.IPAMOptions.Configs = append(o.IPAMOptions.Configs, swarm.IPAMConfig{Subnet: p, Gateway: p.Addr().Next()})
	}
	return o
}

// In a network of the swarm, the other subnets are on the link, and the bridge has an
// address in each.
func TestOverlayOfSeveralSubnets(t *testing.T) {
	w := newNode(t)
	n := w.Networks
	o := withSubnets("net1", "10.0.20.0/28", "fd01::/64", "fd02::/64")
	o.DriverState.Options[api.OptionVNIs] = "4097,4098"
	release, err := n.Use([]*api.Network{o})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	dual := func(ip, ip6 string) *dnet.EndpointSettings {
		e := given(ip)
		e.IPAMConfig.IPv6Address = netip.MustParseAddr(ip6)
		return e
	}
	for id, e := range map[string]*dnet.EndpointSettings{"c1": dual("10.0.20.5", "fd01::5"), "c2": dual("10.0.9.6", "fd02::6"), "c3": given("10.0.9.7")} {
		if _, err := n.Join(t.Context(), id, map[string]*dnet.EndpointSettings{"net1": e}, nil); err != nil {
			t.Fatal(err)
		}
	}
	c := w.fake.There()
	for id, want := range map[string]string{
		"c1": "10.0.20.5/28 fd01::5/64 reaches 10.0.9.0/24 reaches fd02::/64 on overlay net1",
		"c2": "10.0.9.6/24 fd02::6/64 reaches 10.0.20.0/28 reaches fd01::/64 on overlay net1",
		"c3": "10.0.9.7/24 reaches 10.0.20.0/28 on overlay net1",
	} {
		if got := c.Sandboxes[id].String(); !strings.Contains(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
		if out := c.Sandboxes[id].Interfaces[1]; len(out.Routes) != 0 {
			t.Errorf("%s: the way out reaches %v", id, out.Routes)
		}
	}
	if got := c.Overlays["net1"]; got.VNI != 4097 || fmt.Sprint(got.Addresses) != "[10.0.9.1/24 10.0.20.1/28 fd01::1/64 fd02::1/64]" {
		t.Errorf("%s", got)
	}
	in, err := n.Inspect("net1")
	if err != nil || len(in.IPAM.Config) != 4 || len(in.Containers) != 3 {
		t.Errorf("%+v, %v", in, err)
	}
	if _, err := n.Join(t.Context(), "c4", map[string]*dnet.EndpointSettings{"net1": given("10.0.21.5")}, nil); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
}

// A route of the host is in the way of any of a network's subnets.
func TestRoutesAreCheckedForEachSubnet(t *testing.T) {
	w := newNode(t)
	_, err := w.Networks.Use([]*api.Network{withSubnets("net1", "10.99.0.0/28")})
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "its subnet 10.99.0.0/28 overlaps the route to 10.99.0.0/24") {
		t.Error(err)
	}
}

func TestMeshOfSeveralSubnets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSwarmNode(t)
		o := withSubnets("ing", "10.0.20.0/28", "fd01::/64")
		o.Spec.Ingress = true
		own := []netip.Prefix{netip.MustParsePrefix("10.0.20.2/28")}
		n.told(api.NetworkUpdate{ID: "ing", Whole: true, Ingress: o, Own: own, Put: endpoints("n2 10.0.9.3 192.0.2.2 - -")})
		n.is("told", "peer 10.0.9.3 at 192.0.2.2", "mesh ing 10.0.20.2/28 reaches 10.0.9.0/24")
		n.killed()
		n.is("after kill -9", "peer 10.0.9.3 at 192.0.2.2", "mesh ing 10.0.20.2/28 reaches 10.0.9.0/24")
		if m := n.fake.There().Mesh; !slices.Equal(m.Subnets(), []netip.Prefix{netip.MustParsePrefix("10.0.20.0/28"), netip.MustParsePrefix("10.0.9.0/24")}) {
			t.Error(m.Subnets())
		}
	})
}
