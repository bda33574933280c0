package engine

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func TestResolvConf(t *testing.T) {
	host := parseResolv([]byte("# a comment\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch a.example b.example\noptions edns0 trust-ad\n"))
	real := parseResolv([]byte("nameserver 10.0.0.1\nnameserver 127.0.0.1\nsearch a.example b.example\noptions edns0\n"))
	loopback := parseResolv([]byte("nameserver 127.0.0.1\ndomain x.example\n"))
	own := &Sandbox{DNS: []netip.Addr{netip.MustParseAddr("127.0.0.11")}}
	addrs := []netip.Addr{netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("fd00::1")}
	with := func(change func(*container.HostConfig)) *container.HostConfig {
		h := &container.HostConfig{}
		change(h)
		return h
	}
	daemon := Config{DNS: addrs[:1], DNSSearch: []string{"d.example"}, DNSOptions: []string{"timeout:1", "ndots:2"}}
	for _, c := range []struct {
		what       string
		cfg        Config
		h          *container.HostConfig
		box        *Sandbox
		host, real resolv
		want       string
	}{
		{"default bridge", Config{}, &container.HostConfig{}, &Sandbox{}, host, real, "nameserver 10.0.0.1\nsearch a.example b.example\noptions edns0\n"},
		{"only loopback", Config{}, &container.HostConfig{}, &Sandbox{}, loopback, loopback, "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch x.example\n"},
		{"the host's network", Config{}, with(func(h *container.HostConfig) { h.NetworkMode = "host" }), &Sandbox{}, host, real, "nameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch a.example b.example\noptions edns0\n"},
		{"the daemon says", daemon, &container.HostConfig{}, &Sandbox{}, host, real, "nameserver 10.1.1.1\nsearch d.example\noptions timeout:1 ndots:2\n"},
		{"the container says", daemon, with(func(h *container.HostConfig) {
			h.DNS, h.DNSSearch, h.DNSOptions = addrs, []string{"."}, []string{"rotate"}
		}), &Sandbox{}, host, real, "nameserver 10.1.1.1\nnameserver fd00::1\noptions rotate\n"},
		{"own resolver", Config{}, &container.HostConfig{}, own, host, real, "nameserver 127.0.0.11\nsearch a.example b.example\noptions edns0 trust-ad ndots:0\n" +
			"ExtServers: [host(127.0.0.53) host(10.0.0.2)]"},
		{"own resolver, the daemon says", daemon, &container.HostConfig{}, own, host, real, "nameserver 127.0.0.11\nsearch d.example\noptions timeout:1 ndots:2\nExtServers: [host(10.1.1.1)]"},
		{"own resolver, the container says", daemon, with(func(h *container.HostConfig) { h.DNS, h.DNSSearch = addrs, []string{"."} }), own, host, real,
			"nameserver 127.0.0.11\noptions timeout:1 ndots:2\nExtServers: [10.1.1.1 fd00::1]"},
		{"own resolver, an empty host", Config{}, &container.HostConfig{}, own, resolv{}, resolv{}, "nameserver 127.0.0.11\noptions ndots:0\nExtServers: []"},
	} {
		e := &Engine{cfg: c.cfg}
		got := ""
		for line := range strings.Lines(string(e.resolvConf(&record{Host: c.h}, c.box, c.host, c.real).text())) {
			if servers, ok := strings.CutPrefix(line, "# ExtServers"); ok {
				got += "ExtServers" + strings.TrimSpace(servers)
			} else if !strings.HasPrefix(line, "#") {
				got += line
			}
		}
		if got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.what, got, c.want)
		}
	}
}

func TestHostsText(t *testing.T) {
	gateway := []netip.Addr{netip.MustParseAddr("172.18.0.1"), netip.MustParseAddr("fd18::1")}
	box := &Sandbox{HostGateway: gateway, Endpoints: map[string]*network.EndpointSettings{
		"own": {IPAddress: netip.MustParseAddr("172.18.0.2"), GlobalIPv6Address: netip.MustParseAddr("fd18::2")},
	}}
	r := &record{Config: &container.Config{Hostname: "h", Domainname: "example.com"}, Host: &container.HostConfig{
		ExtraHosts: []string{"up:host-gateway", "db:10.1.1.1", "six:::1", "bracket:[fd00::9]", "eq=fd00::8"},
	}}
	for _, c := range []struct {
		cfg  Config
		up   string
		want []string
	}{
		{Config{}, "172.18.0.1\tup\nfd18::1\tup\n", nil},
		{Config{HostGateway: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, "192.0.2.1\tup\n", nil},
	} {
		got, err := (&Engine{cfg: c.cfg}).hostsText(r, box)
		want := c.up + "10.1.1.1\tdb\n::1\tsix\nfd00::9\tbracket\nfd00::8\teq\n172.18.0.2\th.example.com h\nfd18::2\th.example.com h\n"
		if err != nil || !strings.HasSuffix(string(got), want) {
			t.Errorf("%s\n%v, want\n%s", got, err, want)
		}
	}
}

func TestValidateNames(t *testing.T) {
	for _, c := range []struct {
		change func(*container.HostConfig)
		want   string // empty: it is fine
	}{
		{func(h *container.HostConfig) {
			h.ExtraHosts = []string{"a:host-gateway", "b:10.0.0.1", "c:::1", "d=fd00::1", "e:[fd00::1]"}
		}, ""},
		{func(h *container.HostConfig) { h.ExtraHosts = []string{"a"} }, `add-host: "a"`},
		{func(h *container.HostConfig) { h.ExtraHosts = []string{":10.0.0.1"} }, "add-host"},
		{func(h *container.HostConfig) { h.ExtraHosts = []string{"a:somewhere"} }, "add-host"},
		{func(h *container.HostConfig) { h.ExtraHosts = []string{"a\nb:10.0.0.1"} }, "add-host"},
		{func(h *container.HostConfig) { h.DNS = []netip.Addr{{}} }, "dns invalid IP"},
		{func(h *container.HostConfig) { h.DNS = []netip.Addr{netip.IPv6Unspecified()} }, "dns ::"},
		{func(h *container.HostConfig) { h.DNSSearch = []string{".", "a.example"} }, ""},
		{func(h *container.HostConfig) { h.DNSSearch = []string{"a\nnameserver 10.0.0.1"} }, "dns search domain"},
		{func(h *container.HostConfig) { h.DNSOptions = []string{"ndots:2", ""} }, "dns option"},
	} {
		h := &container.HostConfig{}
		c.change(h)
		err := validateNames(h)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", h, err, c.want)
		}
	}
}
