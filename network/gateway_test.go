package network_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

const bridgeOption = "com.docker.network.bridge."

func TestGatewayOptionsAreRefused(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct{ option, value, text string }{
		{bridgeOption + "gateway_mode_ipv4", "route", "must be one of the gateway modes nat, nat-unprotected, routed and isolated"},
		{bridgeOption + "gateway_mode_ipv6", "NAT", "must be one of the gateway modes"},
		{bridgeOption + "gateway_mode_ipv4", "isolated", "gateway mode 'isolated' can only be used for an internal network"},
		{bridgeOption + "gateway_mode_ipv6", "isolated", "gateway mode 'isolated' can only be used for an internal network"},
		{bridgeOption + "trusted_host_interfaces", "eth0,eth1 eth2", "must be names of the host's devices, with a colon between each two"},
		{bridgeOption + "trusted_host_interfaces", "eth0:a-name-of-16-char", "must be names of the host's devices"},
		{bridgeOption + "inhibit_ipv4", "maybe", "must be true or false"},
		{bridgeOption + "enable_icc", "", "must be true or false"},
		{bridgeOption + "enable_ip_masquerade", "x", "must be true or false"},
		{bridgeOption + "host_binding_ipv4", "fe80::1%eth0", "must be an IP address"},
		{"com.docker.network.host_ipv4", "fd00::1", "must be an IPv4 address"},
		{"com.docker.network.host_ipv4", "0.0.0.0", "must be an IPv4 address"},
		{"com.docker.network.host_ipv6", "10.0.0.1", "must be an IPv6 address"},
		{"com.docker.network.host_ipv6", "::ffff:10.0.0.1", "must be an IPv6 address"},
		{"com.docker.network.enable_ipv6", "2", "must be true or false"},
		{"com.docker.network.enable_ipv4", "false", "IPv4 or IPv6 must be enabled"},
		{bridgeOption + "gateway_mode", "routed", "is not served"},
	} {
		_, err := n.Create(t.Context(), &dnet.CreateRequest{Name: "n", Options: map[string]string{c.option: c.value}})
		if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "network") {
			t.Errorf("%s=%s: %v", c.option, c.value, err)
		}
	}
}

// What is asked for is what the data plane is to make, and what is shown.
func TestGatewayOptions(t *testing.T) {
	for _, c := range []struct {
		name     string
		internal bool
		options  map[string]string
		bridge   string
		gateways []string
	}{
		{"nothing", false, nil, "bridge br0 10.5.0.1/24 fd05::1/64 mtu 1400 masquerade", []string{"10.5.0.1", "fd05::1"}},
		{"nat", false, map[string]string{bridgeOption + "gateway_mode_ipv4": "nat"}, "bridge br0 10.5.0.1/24 fd05::1/64 mtu 1400 masquerade", []string{"10.5.0.1", "fd05::1"}},
		{
			"routed", false, map[string]string{bridgeOption + "gateway_mode_ipv4": "nat-unprotected", bridgeOption + "gateway_mode_ipv6": "routed"},
			"bridge br0 10.5.0.1/24 fd05::1/64 mtu 1400 masquerade ipv4 nat-unprotected ipv6 routed", []string{"10.5.0.1", "fd05::1"},
		},
		{
			"isolated", true, map[string]string{bridgeOption + "gateway_mode_ipv4": "isolated", bridgeOption + "gateway_mode_ipv6": "isolated"},
			"bridge br0 mtu 1400 masquerade internal bare 10.5.0.0/24 bare fd05::/64", []string{"invalid IP", "invalid IP"},
		},
		{
			"isolated by IPv6", true, map[string]string{bridgeOption + "gateway_mode_ipv6": "isolated"},
			"bridge br0 10.5.0.1/24 mtu 1400 masquerade internal bare fd05::/64", []string{"10.5.0.1", "invalid IP"},
		},
		{
			"inhibited", false, map[string]string{bridgeOption + "inhibit_ipv4": "true"},
			"bridge br0 fd05::1/64 mtu 1400 masquerade bare 10.5.0.0/24", []string{"10.5.0.1", "fd05::1"},
		},
		{
			"inhibited and internal", true, map[string]string{bridgeOption + "inhibit_ipv4": "true"},
			"bridge br0 fd05::1/64 mtu 1400 masquerade internal bare 10.5.0.0/24", []string{"invalid IP", "fd05::1"},
		},
		{
			"trust", false, map[string]string{bridgeOption + "trusted_host_interfaces": ":vxlan.1:eth3:"},
			"bridge br0 10.5.0.1/24 fd05::1/64 mtu 1400 masquerade trusts vxlan.1 trusts eth3", []string{"10.5.0.1", "fd05::1"},
		},
		{
			"sources", false, map[string]string{"com.docker.network.host_ipv4": "10.99.0.9", "com.docker.network.host_ipv6": "fd99::9"},
			"bridge br0 10.5.0.1/24 fd05::1/64 mtu 1400 masquerade from 10.99.0.9 from fd99::9", []string{"10.5.0.1", "fd05::1"},
		},
		{
			"no masquerading", false, map[string]string{bridgeOption + "enable_ip_masquerade": "false", bridgeOption + "enable_icc": "false"},
			"bridge br0 10.5.0.1/24 fd05::1/64 mtu 1400 isolated", []string{"10.5.0.1", "fd05::1"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			options := map[string]string{bridgeOption + "name": "br0", "com.docker.network.enable_ipv6": "true"}
			for k, v := range c.options {
				options[k] = v
			}
			n.create(dnet.CreateRequest{Name: "web", Internal: c.internal, Options: options, IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{
				{Subnet: netip.MustParsePrefix("10.5.0.0/24")}, {Subnet: netip.MustParsePrefix("fd05::/64")},
			}}})
			n.restart() // it is as it was stored
			if got := strings.TrimSpace(n.fake.There().Bridges["br0"].String()); got != c.bridge {
				t.Errorf("the bridge is\n%s, not\n%s", got, c.bridge)
			}
			r, err := n.Inspect("web")
			if err != nil || !r.EnableIPv6 || len(r.Options) != len(options) {
				t.Fatalf("inspect: %+v, %v", r, err)
			}
			var gateways []string
			for _, x := range r.IPAM.Config {
				gateways = append(gateways, x.Gateway.String())
			}
			if !slices.Equal(gateways, c.gateways) {
				t.Errorf("gateways are %v", gateways)
			}
		})
	}
}

// What a container's ports come to, by its networks' options.
func TestPublishing(t *testing.T) {
	option := func(l ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(l); i += 2 {
			m[bridgeOption+l[i]] = l[i+1]
		}
		return m
	}
	for _, c := range []struct {
		name          string
		one           map[string]string // of its first network, with its way out
		two           map[string]string // of its second; nil: none
		v6            bool
		asked         []string
		shown, opened string
	}{
		{"nat", nil, nil, true, []string{"80/tcp", "", "8080"}, "0.0.0.0:8080 [::]:8080", ""},
		{"routed", option("gateway_mode_ipv4", "routed", "gateway_mode_ipv6", "routed"), nil, true, []string{"80/tcp", "", "8080"}, "0.0.0.0: [::]:", "172.18.0.2:80 [fd12::2]:80"},
		{"routed by IPv6", option("gateway_mode_ipv6", "routed"), nil, true, []string{"80/tcp", "", "8080"}, "0.0.0.0:8080 [::]:", "[fd12::2]:80"},
		{"routed by IPv6, asked for that", option("gateway_mode_ipv6", "routed"), nil, true, []string{"80/tcp", "::", ""}, "[::]:", "[fd12::2]:80"},
		{"routed by IPv4", option("gateway_mode_ipv4", "routed"), nil, true, []string{"80/tcp", "", "8080"}, "[::]:8080 0.0.0.0:", "172.18.0.2:80"},
		{"routed without IPv6", option("gateway_mode_ipv4", "routed"), nil, false, []string{"80/tcp", "", "8080"}, "0.0.0.0:", "172.18.0.2:80"},
		{"an address does not matter", option("gateway_mode_ipv4", "routed"), nil, false, []string{"80/tcp", "127.0.0.1", "8080"}, "0.0.0.0:", "172.18.0.2:80"},
		{"once", option("gateway_mode_ipv4", "routed"), nil, false, []string{"80/tcp", "", "8080", "80/tcp", "", "8081"}, "0.0.0.0:", "172.18.0.2:80"},
		{"a default address", option("gateway_mode_ipv4", "routed", "host_binding_ipv4", "127.0.0.1"), nil, true, []string{"80/tcp", "", "8080"}, "0.0.0.0:", "172.18.0.2:80"},
		{"a default address of IPv6", option("gateway_mode_ipv6", "routed", "host_binding_ipv4", "::1"), nil, true, []string{"80/tcp", "", "8080"}, "[::]:", "[fd12::2]:80"},
		{"all by default", option("host_binding_ipv4", "0.0.0.0"), nil, true, []string{"80/tcp", "", "8080"}, "0.0.0.0:8080 [::]:8080", ""},
		{"all of IPv6 by default", option("host_binding_ipv4", "::"), nil, true, []string{"80/tcp", "", "8080"}, "[::]:8080", ""},
		{"asked for IPv4", option("host_binding_ipv4", "0.0.0.0"), nil, true, []string{"80/tcp", "0.0.0.0", "8080"}, "0.0.0.0:8080", ""},
		{"routed beside", nil, option("gateway_mode_ipv4", "routed"), false, []string{"80/tcp", "", "8080"}, "0.0.0.0:8080 [::]:8080 0.0.0.0:", "172.19.0.2:80"},
		{"routed twice", option("gateway_mode_ipv4", "routed"), option("gateway_mode_ipv4", "routed"), false, []string{"80/tcp", "", "8080"}, "0.0.0.0:", "172.18.0.2:80 172.19.0.2:80"},
		{"only exposed", option("gateway_mode_ipv4", "routed"), nil, false, nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			create := func(name, subnet string, options map[string]string) {
				q := dnet.CreateRequest{Name: name, Options: options, EnableIPv6: &c.v6}
				if c.v6 {
					q.IPAM = &dnet.IPAM{Config: []dnet.IPAMConfig{{Subnet: netip.MustParsePrefix(subnet)}}}
				}
				n.create(q)
			}
			nets := []string{"one"}
			if create("one", "fd12::/64", c.one); c.two != nil {
				create("two", "fd13::/64", c.two)
				nets = append(nets, "two")
			}
			j, err := n.Join(t.Context(), "c1", in(nets...), ports(c.asked...))
			if err != nil {
				t.Fatal(err)
			}
			var shown, opened, all []string
			for _, b := range j.Ports[dnet.MustParsePort("80/tcp")] {
				shown = append(shown, strings.TrimSuffix(netip.AddrPortFrom(b.HostIP, 0).String(), "0")+b.HostPort)
			}
			for _, p := range n.fake.There().Ports {
				if p.Open {
					opened = append(opened, p.Host.String())
				}
				all = append(all, p.Host.String())
			}
			slices.Sort(opened)
			if got := strings.Join(shown, " "); got != c.shown {
				t.Errorf("shown as %s, not %s", got, c.shown)
			}
			if got := strings.Join(opened, " "); got != c.opened {
				t.Errorf("open are %s, not %s (of %v)", got, c.opened, all)
			}
			before := n.fake.There().String()
			n.restart("c1")
			if after := n.fake.There().String(); after != before {
				t.Errorf("a restart changed\n%sto\n%s", before, after)
			}
		})
	}
}

// A container keeps its host ports, and what was asked for them, as its networks change.
func TestPortsOfChangingNetworks(t *testing.T) {
	n := newNode(t)
	n.create(dnet.CreateRequest{Name: "routed", Options: map[string]string{bridgeOption + "gateway_mode_ipv4": "routed"}})
	n.create(dnet.CreateRequest{Name: "a-nat"})
	shown := func() (l []string) {
		for k, p := range n.fake.There().Ports {
			l = append(l, fmt.Sprintf("%s %s", k.Host, p.Target))
		}
		slices.Sort(l)
		return l
	}
	if _, err := n.Join(t.Context(), "c1", in("routed"), ports("80/tcp", "", "8080", "81/tcp", "", "")); err != nil {
		t.Fatal(err)
	}
	routed := []string{"172.18.0.2:80 172.18.0.2:80", "172.18.0.2:81 172.18.0.2:81"}
	if got := shown(); !slices.Equal(got, routed) {
		t.Errorf("routed: %q", got)
	}
	if _, err := n.Join(t.Context(), "c2", in("routed"), ports("80/tcp", "", "8080")); err != nil {
		t.Errorf("nobody has the port: %v", err)
	}
	if err := n.Leave(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Connect(t.Context(), "c1", "a-nat", nil); err != nil {
		t.Fatal(err)
	}
	both := []string{
		"0.0.0.0:49153 172.19.0.2:81", "0.0.0.0:8080 172.19.0.2:80",
		"172.18.0.2:80 172.18.0.2:80", "172.18.0.2:81 172.18.0.2:81", "[::]:49153 172.19.0.2:81", "[::]:8080 172.19.0.2:80",
	}
	if got := shown(); !slices.Equal(got, both) {
		t.Errorf("in both: %q", got)
	}
	if got := n.Published("c1")[dnet.MustParsePort("80/tcp")]; len(got) != 3 || got[0].HostPort != "8080" || got[2].HostPort != "" {
		t.Errorf("shown as %v", got)
	}
	if got := n.Published("c2"); got != nil {
		t.Errorf("of one that is gone: %v", got)
	}
	n.create(dnet.CreateRequest{Name: "a-a"})
	if _, err := n.Connect(t.Context(), "c1", "a-a", nil); err != nil {
		t.Fatal(err)
	}
	if got := shown(); len(got) != 6 || got[0] != "0.0.0.0:49153 172.20.0.2:81" {
		t.Errorf("with another way out: %q", got)
	}
	for _, name := range []string{"a-a", "a-nat"} {
		if err := n.Disconnect(t.Context(), "c1", name, false); err != nil {
			t.Fatal(err)
		}
	}
	if got := shown(); !slices.Equal(got, routed) {
		t.Errorf("routed again: %q", got)
	}
}

func TestGatewayText(t *testing.T) {
	b := &network.Bridge{
		Device: "b0", Bare: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/24")}, Mode4: network.GatewayRouted, Mode6: network.GatewayUnprotected,
		Trusted: []string{"up0"}, TrustAll: true, Source4: netip.MustParseAddr("10.99.0.1"), Source6: netip.MustParseAddr("fd99::1"),
	}
	if got, want := b.String(), "bridge b0 bare 10.5.0.0/24 ipv4 routed ipv6 nat-unprotected trusts up0 trusts all from 10.99.0.1 from fd99::1\n"; got != want {
		t.Errorf("got %s", got)
	}
	for name, change := range map[string]func(*network.Bridge){
		"mode":         func(b *network.Bridge) { b.Mode4 = "isolated" },
		"mode of IPv6": func(b *network.Bridge) { b.Mode6 = "nat" },
		"subnet":       func(b *network.Bridge) { b.Bare = []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24")} },
		"device":       func(b *network.Bridge) { b.Trusted = []string{"a b"} },
		"source":       func(b *network.Bridge) { b.Source4 = b.Source6 },
	} {
		wrong := *b
		change(&wrong)
		if c := (&network.Config{Bridges: map[string]*network.Bridge{"b0": &wrong}}); c.Validate() == nil || wrong.Equal(b) {
			t.Errorf("%s: valid, or equal", name)
		}
	}
}
