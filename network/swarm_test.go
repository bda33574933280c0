package network_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	dnet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

func overlayNetwork(id, name, subnet string) *api.Network {
	n := &api.Network{}
	n.ID, n.Spec.Name = id, name
	p := netip.MustParsePrefix(subnet)
	n.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: p, Gateway: p.Addr().Next()}}}
	n.DriverState = swarm.Driver{Name: "overlay", Options: map[string]string{api.OptionVNIs: "4097"}}
	return n
}

func given(addr string) *dnet.EndpointSettings {
	return &dnet.EndpointSettings{IPAMConfig: &dnet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(addr)}}
}

// A task's container is in its overlay with the address it was given, and gets a
// way out; when the last one leaves, nothing of the overlay is left.
func TestOverlay(t *testing.T) {
	w := newNode(t)
	n := w.Networks
	release, err := n.Use([]*api.Network{overlayNetwork("net1", "web", "10.0.9.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	n.Told(netip.MustParseAddr("10.99.0.1"), &api.OverlayUpdate{Complete: true, DataPort: 4789, Networks: []api.NetworkUpdate{{ID: "net1", Whole: true,
		Put: []api.OverlayEndpoint{{ID: "t7", Addresses: []netip.Addr{netip.MustParseAddr("10.0.9.7")}, Node: netip.MustParseAddr("10.99.0.2")}}}}})
	j, err := n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"net1": given("10.0.9.5")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := j.Endpoints["web"]; len(j.Endpoints) != 1 || e == nil || e.IPAddress.String() != "10.0.9.5" || e.Gateway.IsValid() || e.MacAddress.String() != "02:42:0a:00:09:05" {
		t.Errorf("%+v", j.Endpoints)
	}
	release()
	c := w.fake.There()
	s := c.Sandboxes["c1"]
	if len(s.Interfaces) != 2 || s.Interfaces[0].Overlay != "net1" || s.Interfaces[0].MTU != 1350 || s.Interfaces[1].Bridge == "" || !s.Gateway4.IsValid() {
		t.Errorf("%s", s)
	}
	if b := c.Bridges[s.Interfaces[1].Bridge]; b == nil || !b.Isolated || !b.Masquerade {
		t.Errorf("the way out is %v", b)
	}
	if o := c.Overlays["net1"]; o == nil || o.VNI != 4097 || len(o.Peers) != 1 || o.Unknown || o.Addresses[0].String() != "10.0.9.1/24" {
		t.Errorf("%v", o)
	}
	if l, err := n.List(api.Filters{"name": {"docker_gwbridge"}}); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
	if err := n.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if c := w.fake.There(); len(c.Overlays) != 0 || len(c.Sandboxes) != 0 {
		t.Errorf("left:\n%s", c)
	}
	if _, err := n.Inspect("net1"); !api.Is(err, api.NotFound) {
		t.Error(err)
	}
}

// The first containers in overlays may start at the same time: all get the way
// out, by one gateway network.
func TestFirstInOverlaysTogether(t *testing.T) {
	w := newNode(t)
	n := w.Networks
	release, err := n.Use([]*api.Network{overlayNetwork("net1", "web", "10.0.9.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	n.Told(netip.MustParseAddr("10.99.0.1"), &api.OverlayUpdate{DataPort: 4789})
	var all errgroup.Group
	for i := range 8 {
		all.Go(func() error {
			_, err := n.Join(t.Context(), fmt.Sprintf("c%d", i), map[string]*dnet.EndpointSettings{"net1": given(fmt.Sprintf("10.0.9.%d", i+5))}, nil)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	for id, s := range w.fake.There().Sandboxes {
		if len(s.Interfaces) != 2 || !s.Gateway4.IsValid() {
			t.Errorf("%s: %s", id, s)
		}
	}
	if l, err := n.List(api.Filters{"name": {"docker_gwbridge"}}); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
}

// After a restart without a manager the overlays are there, with tunnels as they
// were.
func TestOverlayOutlivesTheDaemon(t *testing.T) {
	w := newNode(t)
	n := w.Networks
	release, err := n.Use([]*api.Network{overlayNetwork("net1", "web", "10.0.9.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	n.Told(netip.Addr{}, &api.OverlayUpdate{Complete: true, Networks: []api.NetworkUpdate{{ID: "net1", Whole: true}}})
	if _, err := n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"net1": given("10.0.9.5")}, nil); err != nil {
		t.Fatal(err)
	}
	release()
	w.restart("c1")
	n = w.Networks
	c := w.fake.There()
	if o := c.Overlays["net1"]; o == nil || !o.Unknown || w.fake.Made("c1") != 1 {
		t.Errorf("%s", c)
	}
	if ids, _ := n.Overlays(); !slices.Equal(ids, []string{"net1"}) {
		t.Error(ids)
	}
	if err := n.Keep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if c := w.fake.There(); len(c.Overlays) != 0 {
		t.Errorf("%s", c)
	}
}

func TestOverlayRefusals(t *testing.T) {
	w := newNode(t)
	n := w.Networks
	if _, err := n.Use([]*api.Network{{Network: swarm.Network{ID: "gone"}}}); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
	release, err := n.Use([]*api.Network{overlayNetwork("a", "a", "10.0.9.0/24"), overlayNetwork("b", "b", "10.0.9.0/25"), {Predefined: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	_, err = n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"a": given("10.0.9.5"), "b": given("10.0.9.6")}, nil)
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "overlaps") {
		t.Error(err)
	}
	if _, err = n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"a": nil}, nil); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "only tasks") {
		t.Error(err)
	}
	if _, err = n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"a": given("10.1.0.1")}, nil); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
	if err := n.Remove(t.Context(), "a"); !api.Is(err, api.NotFound) {
		t.Error(err)
	}
}

// What fits into a tunnel depends on the device of the node's address, and stays
// as it is while the node is in the network.
func TestOverlayMTU(t *testing.T) {
	w := newNode(t)
	w.fake.SetHost(network.Host{MTU: 1400, Devices: map[string]network.Device{
		"up0": {MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24")}},
		"up1": {MTU: 9000, Addresses: []netip.Prefix{netip.MustParsePrefix("10.98.0.1/24"), netip.MustParsePrefix("fd98::1/64")}},
	}})
	w.restart()
	encrypted := overlayNetwork("e", "e", "10.0.9.0/24")
	encrypted.DriverState.Options[api.OptionEncrypted] = ""
	plain := overlayNetwork("p", "p", "10.0.8.0/24")
	plain.DriverState.Options[api.OptionVNIs] = "4098"
	for _, c := range []struct {
		local    string
		mtu, enc int
	}{{"10.99.0.1", 1350, 1310}, {"10.98.0.1", 8950, 8910}, {"fd98::1", 8930, 8890}, {"10.97.0.1", 1350, 1310}, {"127.0.0.1", 1350, 1310}} {
		n := w.Networks
		n.SetLocal(netip.MustParseAddr(c.local))
		release, err := n.Use([]*api.Network{encrypted, plain})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"e": given("10.0.9.5"), "p": given("10.0.8.5")}, nil); err != nil {
			t.Fatal(err)
		}
		n.SetLocal(netip.MustParseAddr("10.97.0.9")) // too late
		there := w.fake.There()
		e, p := there.Overlays["e"], there.Overlays["p"]
		if !e.Encrypted || p.Encrypted || e.MTU != c.enc || p.MTU != c.mtu || there.Sandboxes["c1"].Interfaces[0].MTU != c.enc {
			t.Errorf("%s: %s%s%s", c.local, e, p, there.Sandboxes["c1"])
		}
		if err := n.Leave(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		release()
	}
}

// No kernel gives a device of less than 1280 bytes an IPv6 address: said before a
// container is made.
func TestIPv6NeedsRoomInTunnels(t *testing.T) {
	w := newNode(t)
	w.fake.SetHost(network.Host{MTU: 1340, IPv6: true, Devices: map[string]network.Device{"up0": {MTU: 1340}}})
	w.restart()
	for _, c := range []struct {
		mtu       string
		encrypted bool
		want      string
	}{{"", false, ""}, {"", true, "this node's tunnels take 1250"}, {"1280", true, ""}, {"1279", false, "tunnels take 1279"}} {
		o := overlayNetwork("v6", "v6", "10.0.9.0/24")
		o.Spec.IPv6Enabled, o.DriverState.Options[api.OptionMTU] = true, c.mtu
		if c.encrypted {
			o.DriverState.Options[api.OptionEncrypted] = ""
		}
		release, err := w.Use([]*api.Network{o})
		if c.want == "" && err != nil || c.want != "" && (!api.Is(err, api.Invalid) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
		if err == nil {
			release()
		}
	}
}
