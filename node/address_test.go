package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func TestResolveAdvertise(t *testing.T) {
	one := []iface{
		{"lo", []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}},
		{"eth0", []netip.Addr{netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("fd00::5")}},
		{"docker0", []netip.Addr{netip.MustParseAddr("172.17.0.1")}},
	}
	two := append(one[:2:2], iface{"eth1", []netip.Addr{netip.MustParseAddr("10.1.1.5")}})
	double := []iface{{"eth0", []netip.Addr{netip.MustParseAddr("10.1.1.5"), netip.MustParseAddr("10.1.1.6")}}}
	const all = "0.0.0.0:2377"
	for _, c := range []struct {
		name, spec, fallback, listen string
		host                         []iface
		want, err                    string
	}{
		{"address", "127.0.0.1", "", all, one, "127.0.0.1:2377", ""},
		{"address and port", "10.0.0.1:4000", "", all, one, "10.0.0.1:4000", ""},
		{"port follows the listen address", "10.0.0.1", "", "0.0.0.0:5000", one, "10.0.0.1:5000", ""},
		{"interface", "eth0", "", all, one, "192.168.1.5:2377", ""},
		{"interface and port", "eth0:99", "", all, one, "192.168.1.5:99", ""},
		{"IPv6", "fd00::5", "", all, one, "[fd00::5]:2377", ""},
		{"IPv6 and port", "[fd00::5]:1", "", all, one, "[fd00::5]:1", ""},
		{"the daemon's default", "", "eth0", all, one, "192.168.1.5:2377", ""},
		{"the listen address", "", "", "10.9.9.9:2377", two, "10.9.9.9:2377", ""},
		{"the only address", "", "", all, one, "192.168.1.5:2377", ""},
		{"several interfaces", "", "", all, two, "", "multiple addresses on different interfaces (192.168.1.5 on eth0 and 10.1.1.5 on eth1)"},
		{"several addresses", "", "", all, double, "", "multiple addresses on interface eth0"},
		{"several on the interface", "eth0", "", all, double, "", "advertise address must be a non-zero IP address or network interface (with optional port number): interface eth0 has more than one IPv4 address"},
		{"no address", "", "", all, nil, "", "could not find"},
		{"IPv6 in brackets", "[fd00::5]", "", "0.0.0.0:5000", one, "[fd00::5]:5000", ""},
		{"half in brackets", "[fd00::5", "", all, one, "", "missing ']'"},
		{"IPv6 that ends like a port", "fd00::2377", "", "0.0.0.0:5000", one, "[fd00::2377]:5000", ""},
		{"unknown default", "", "eth7", all, one, "", `(--swarm-default-advertise-addr): "eth7" is neither`},
		{"unknown interface", "eth7", "", all, one, "", "neither an IP address nor a network interface"},
		{"zero", "0.0.0.0", "", all, one, "", "non-zero"},
		{"bad port", "10.0.0.1:70000", "", all, one, "", `not "10.0.0.1:70000": "70000" is not a port number`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := resolveAdvertise(c.spec, c.fallback, c.listen, c.host)
			if c.err == "" && (err != nil || got != c.want) {
				t.Fatalf("got %q, %v; want %q", got, err, c.want)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("got %q, error %v; want an error with %q", got, err, c.err)
			}
		})
	}
}

func TestResolveListen(t *testing.T) {
	host := []iface{{"eth0", []netip.Addr{netip.MustParseAddr("192.168.1.5")}}}
	for _, c := range []struct{ spec, want, err string }{
		{"0.0.0.0", "0.0.0.0:2377", ""},
		{"eth0:4567", "192.168.1.5:4567", ""},
		{"[::1]:4567", "[::1]:4567", ""},
		{"eth7", "", "listen address must be an IP address or network interface (with optional port number): \"eth7\" is neither"},
		{"10.0.0.1:x", "", "listen address must be an IP address or network interface (with optional port number), not \"10.0.0.1:x\""},
	} {
		got, err := resolveListen(c.spec, host)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && (!api.Is(err, api.Invalid) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v", c.spec, got, err)
		}
	}
}

// Tunnels send from this address, so the host must have it.
func TestResolveDataPath(t *testing.T) {
	host := []iface{{"eth0", []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}}
	for spec, want := range map[string]string{"10.0.0.1": "10.0.0.1", "fd00::1": "fd00::1", "127.0.0.1": "127.0.0.1", "eth0": "10.0.0.1", "10.0.0.2": "this host has no address 10.0.0.2", "10.0.0.1:88": badDataPath, "eth7": "neither an IP address"} {
		got, err := resolveDataPath(spec, host)
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}

// A swarm whose pools are all routed elsewhere is not begun.
func TestPoolsWithoutRoom(t *testing.T) {
	_, err := newSwarm(t.Context(), &swarm.InitRequest{DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, &membership{RaftID: 1, AdvertiseAddr: "127.0.0.1:1"}, nil,
		[]netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}, time.Now())
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "--default-addr-pool") || !strings.Contains(err.Error(), "routes of this manager's host (192.0.2.0/25)") {
		t.Error(err)
	}
}

func TestLockRootRefusesASecondDaemon(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRoot(dir); err == nil || !strings.Contains(err.Error(), "in use by another daemon") {
		t.Fatalf("second lock: %v", err)
	}
	unlock()
	again, err := lockRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
