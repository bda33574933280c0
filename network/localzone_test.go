package network_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dnet "github.com/moby/moby/api/types/network"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

// resolvConf has the host ask these servers.
func resolvConf(t *testing.T, servers ...string) func(*network.Options) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeResolv(t, path, servers...)
	return func(o *network.Options) { o.ResolvConf = path }
}

func writeResolv(t *testing.T, path string, servers ...string) {
	t.Helper()
	text := "# of the host\nsearch example.com\noptions edns0\nnameserver\nnameserver nonsense\n"
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// namedJoin puts a container with names in networks.
func (n *node) namedJoin(id string, names []string, nets ...string) *network.Joined {
	n.t.Helper()
	e := map[string]*dnet.EndpointSettings{}
	for _, net := range nets {
		e[net] = &dnet.EndpointSettings{DNSNames: names}
	}
	j, err := n.Join(n.t.Context(), id, e, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return j
}

// zone renders the names of the only zone.
func (n *node) zone() string {
	n.t.Helper()
	zones := n.fake.There().Zones
	if len(zones) > 1 {
		n.t.Fatalf("%d zones", len(zones))
	}
	for _, z := range zones {
		_, rest, _ := strings.Cut(z.String(), "\n")
		return z.Name + ":" + strings.ReplaceAll(rest, "\n", ";")
	}
	return ""
}

func (n *node) expectZone(want string) {
	n.t.Helper()
	if got := n.zone(); got != want {
		n.t.Errorf("zone\n%s\nwant\n%s", got, want)
	}
}

func (n *node) resolver(id string) string {
	n.t.Helper()
	r := n.fake.There().Sandboxes[id].Resolver
	if r == nil {
		return "none"
	}
	_, servers, _ := strings.Cut(r.String(), " else")
	return strings.TrimSpace(servers)
}

func TestLocalZone(t *testing.T) {
	n := newNode(t, resolvConf(t, "10.9.9.9"))
	n.create(dnet.CreateRequest{Name: "Back", IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{
		{Subnet: netip.MustParsePrefix("10.77.0.0/24")}, {Subnet: netip.MustParsePrefix("fd77::/64")},
	}}, EnableIPv6: new(true)})
	n.expectZone("")
	j := n.namedJoin("c1", []string{"Web", "alias", "0123456789ab", "host1."}, "Back")
	if len(j.DNS) != 1 || j.DNS[0] != network.ResolverAddr() || len(j.HostGateway) != 2 {
		t.Errorf("%+v", j)
	}
	n.expectZone("Back:  0123456789ab 10.77.0.2 fd77::2;  alias 10.77.0.2 fd77::2;  host1 10.77.0.2 fd77::2;  web 10.77.0.2 fd77::2;  10.77.0.2 is Web.Back;  fd77::2 is Web.Back;")
	n.namedJoin("c2", []string{"db", "alias"}, "Back")
	n.expectZone("Back:  0123456789ab 10.77.0.2 fd77::2;  alias 10.77.0.2 10.77.0.3 fd77::2 fd77::3;  db 10.77.0.3 fd77::3;  host1 10.77.0.2 fd77::2;  web 10.77.0.2 fd77::2;" +
		"  10.77.0.2 is Web.Back;  10.77.0.3 is db.Back;  fd77::2 is Web.Back;  fd77::3 is db.Back;")
	if err := n.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	n.expectZone("Back:  alias 10.77.0.3 fd77::3;  db 10.77.0.3 fd77::3;  10.77.0.3 is db.Back;  fd77::3 is db.Back;")
	if err := n.Rename(t.Context(), "c2", "db", "store"); err != nil {
		t.Fatal(err)
	}
	n.expectZone("Back:  alias 10.77.0.3 fd77::3;  store 10.77.0.3 fd77::3;  10.77.0.3 is store.Back;  fd77::3 is store.Back;")
	// All that is known after a restart, too.
	n.restart("c2")
	n.expectZone("Back:  alias 10.77.0.3 fd77::3;  store 10.77.0.3 fd77::3;  10.77.0.3 is store.Back;  fd77::3 is store.Back;")
	if got := n.resolver("c2"); got != "10.9.9.9:53" {
		t.Error(got)
	}
	if err := n.Rename(t.Context(), "nobody", "a", "b"); err != nil {
		t.Error(err)
	}
	if err := n.Leave(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	n.expectZone("")
}

// TestLocalZoneConnect: containers are found in the networks that they are in,
// and nowhere else. Those of the default bridge have no names.
func TestLocalZoneConnect(t *testing.T) {
	n := newNode(t, resolvConf(t, "10.9.9.9"))
	n.create(dnet.CreateRequest{Name: "own", IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{{Subnet: netip.MustParsePrefix("10.77.0.0/24")}}}})
	j := n.namedJoin("c1", []string{"web"}, "bridge")
	if len(j.DNS) != 0 || n.resolver("c1") != "none" || n.zone() != "" {
		t.Errorf("%+v %s %s", j, n.resolver("c1"), n.zone())
	}
	e, err := n.Connect(t.Context(), "c1", "own", &dnet.EndpointSettings{DNSNames: []string{"web", "alias"}})
	if err != nil || len(e.DNSNames) != 2 {
		t.Fatal(e, err)
	}
	n.expectZone("own:  alias 10.77.0.2;  web 10.77.0.2;  10.77.0.2 is web.own;")
	if got := n.resolver("c1"); got != "10.9.9.9:53" {
		t.Error(got)
	}
	// Its resolv.conf names the resolver from now on, so there is one.
	if err := n.Disconnect(t.Context(), "c1", "own", false); err != nil {
		t.Fatal(err)
	}
	if got := n.resolver("c1"); got != "10.9.9.9:53" || n.zone() != "" {
		t.Error(got, n.zone())
	}
	for _, name := range []string{"none", "host"} {
		if j := n.namedJoin("c-"+name, []string{"x"}, name); len(j.DNS) != 0 || len(j.HostGateway) != 0 {
			t.Errorf("%s: %+v", name, j)
		}
	}
}

// TestLinks: names that one container gives to others are its own.
func TestLinks(t *testing.T) {
	n := newNode(t, resolvConf(t))
	n.create(dnet.CreateRequest{Name: "own", IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{{Subnet: netip.MustParsePrefix("10.77.0.0/24")}}}})
	const whole = "0123456789abcdef"
	n.namedJoin(whole, []string{"db", whole[:12]}, "own")
	links := []string{"db:Database", "/db:/other", whole + ":byid", "nobody:x", "db"}
	_, err := n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"own": {DNSNames: []string{"web"}, Links: links}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := n.fake.There()
	zones := c.Sandboxes["c1"].Resolver.Zones
	if len(zones) != 2 || len(c.Sandboxes[whole].Resolver.Zones) != 1 {
		t.Fatal(zones)
	}
	_, got, _ := strings.Cut(c.Zones[zones[0]].String(), "\n")
	if want := "  byid 10.77.0.2\n  database 10.77.0.2\n  db 10.77.0.2\n  other 10.77.0.2\n"; got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
	if err := n.Leave(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	if c := n.fake.There(); len(c.Zones[zones[0]].Names) != 0 {
		t.Error(c.Zones[zones[0]])
	}
	if err := n.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	n.expectZone("")
}

// TestResolverServers: who is asked for other names.
func TestResolverServers(t *testing.T) {
	internal := dnet.CreateRequest{Name: "internal", Internal: true}
	for _, c := range []struct {
		what   string
		change func(*network.Options)
		nets   []string
		dns    []netip.Addr
		want   string
	}{
		{"the host's, loopback too", resolvConf(t, "127.0.0.53", "10.9.9.9", "fe80::1%eth0"), []string{"own"}, nil, "127.0.0.53:53 10.9.9.9:53 [fe80::1%eth0]:53"},
		{"none", resolvConf(t), []string{"own"}, nil, ""},
		{"the daemon's", func(o *network.Options) { o.DNS = []netip.Addr{netip.MustParseAddr("10.8.8.8")} }, []string{"own"}, nil, "10.8.8.8:53"},
		{"the container's", resolvConf(t, "10.9.9.9"), []string{"own"}, []netip.Addr{netip.MustParseAddr("127.0.0.1"), network.ResolverAddr()}, "127.0.0.1:53 inside"},
		{"internal", resolvConf(t, "127.0.0.53"), []string{"internal"}, nil, ""},
		{"internal and not", resolvConf(t, "127.0.0.53"), []string{"internal", "own"}, nil, "127.0.0.53:53"},
		{"internal, the container's", resolvConf(t, "127.0.0.53"), []string{"internal"}, []netip.Addr{netip.MustParseAddr("10.1.1.1")}, "10.1.1.1:53 inside"},
	} {
		t.Run(c.what, func(t *testing.T) {
			n := newNode(t, c.change)
			n.create(internal)
			n.create(dnet.CreateRequest{Name: "own"})
			n.SetDNS("c1", c.dns)
			n.namedJoin("c1", []string{"web"}, c.nets...)
			if got := n.resolver("c1"); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			n.restart("c1")
			if got := n.resolver("c1"); got != c.want {
				t.Errorf("after a restart %s, want %s", got, c.want)
			}
			// What one container wants is not the next one's.
			n.namedJoin("c2", []string{"web"}, "own")
			if got := n.resolver("c2"); strings.Contains(got, "inside") {
				t.Error(got)
			}
		})
	}
	o := newNode(t).o
	o.DNS = []netip.Addr{netip.IPv4Unspecified()}
	if _, err := network.New(t.Context(), o); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "0.0.0.0") {
		t.Error(err)
	}
}

// TestHostResolvConfChanges: containers that run ask the host's new servers.
func TestHostResolvConfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, resolvConf(t, "10.9.9.9"))
		n.create(dnet.CreateRequest{Name: "own"})
		n.namedJoin("c1", []string{"web"}, "own")
		n.SetDNS("c2", []netip.Addr{netip.MustParseAddr("10.1.1.1")})
		n.namedJoin("c2", []string{"db"}, "own")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = n.Run(ctx) }) // ends with ctx
		time.Sleep(10 * time.Second)
		writeResolv(t, n.o.ResolvConf, "10.9.9.10", "10.9.9.11")
		time.Sleep(10 * time.Second)
		if got := n.resolver("c1"); got != "10.9.9.10:53 10.9.9.11:53" {
			t.Error(got)
		}
		if got := n.resolver("c2"); got != "10.1.1.1:53 inside" {
			t.Error(got)
		}
		// A file that is gone for a moment, as while it is replaced.
		if err := os.Remove(n.o.ResolvConf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if got := n.resolver("c1"); got != "10.9.9.10:53 10.9.9.11:53" {
			t.Error(got)
		}
		writeResolv(t, n.o.ResolvConf, "10.9.9.12")
		time.Sleep(10 * time.Second)
		if got := n.resolver("c1"); got != "10.9.9.12:53" {
			t.Error(got)
		}
		cancel()
		wg.Wait()
	})
}

// slowPlane takes its time to set, and notes which names are answered at most.
type slowPlane struct {
	*networktest.Fake
	mu     sync.Mutex
	delay  time.Duration
	narrow string
}

func (p *slowPlane) Set(ctx context.Context, c *network.Config) error {
	p.mu.Lock()
	d := p.delay
	p.mu.Unlock()
	time.Sleep(d)
	return p.Fake.Set(ctx, c)
}

func (p *slowPlane) Narrow(c *network.Config) {
	p.Fake.Narrow(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.narrow = ""
	for _, z := range c.Zones {
		p.narrow += z.String()
	}
}

// TestNamesAreTakenBackAtOnce: a container that leaves is not found any more,
// also while the data plane is busy with others.
func TestNamesAreTakenBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &slowPlane{}
		n := newNode(t, resolvConf(t), func(o *network.Options) {
			p.Fake = o.Dataplane.(*networktest.Fake)
			o.Dataplane = p
		})
		n.create(dnet.CreateRequest{Name: "own"})
		n.namedJoin("c1", []string{"web"}, "own")
		p.mu.Lock()
		p.delay = time.Second
		p.mu.Unlock()
		var wg sync.WaitGroup
		wg.Go(func() { n.namedJoin("c2", []string{"db"}, "own") })
		time.Sleep(100 * time.Millisecond) // its Set is under way
		wg.Go(func() {
			if err := n.Leave(t.Context(), "c1"); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Millisecond)
		p.mu.Lock()
		if strings.Contains(p.narrow, "web") || !strings.Contains(p.narrow, "db") {
			t.Errorf("answered: %s", p.narrow)
		}
		p.mu.Unlock()
		wg.Wait()
		if z := n.zone(); strings.Contains(z, "web") {
			t.Error(z)
		}
	})
}

// TestNarrowed: random zones; what is left is what both have, and what is left
// of all is the zone itself.
func TestNarrowed(t *testing.T) {
	draw := func(r *rapid.T) *network.Zone {
		z := &network.Zone{ID: "n", Name: "net", Names: map[string][]netip.Addr{}, Owners: map[netip.Addr]string{}}
		addr := rapid.Custom(func(r *rapid.T) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(r, "a") % 4}) })
		for _, name := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3).Draw(r, "names") {
			z.Names[name] = rapid.SliceOfNDistinct(addr, 0, 4, rapid.ID).Draw(r, "addresses")
		}
		for _, a := range rapid.SliceOfN(addr, 0, 3).Draw(r, "owned") {
			z.Owners[a] = rapid.SampledFrom([]string{"a", "b"}).Draw(r, "owner")
		}
		return z
	}
	rapid.Check(t, func(r *rapid.T) {
		a, b := draw(r), draw(r)
		before := a.String() + b.String()
		n := a.Narrowed(b)
		for name, l := range a.Names {
			both, ok := b.Names[name]
			got, left := n.Names[name]
			want := slices.DeleteFunc(slices.Clone(l), func(x netip.Addr) bool { return !slices.Contains(both, x) })
			if left != ok || ok && !slices.Equal(got, want) {
				r.Fatalf("%s: %v %v, want %v %v", name, got, left, want, ok)
			}
		}
		for x, owner := range a.Owners {
			if got, left := n.Owners[x]; left != (b.Owners[x] == owner) || left && got != owner {
				r.Fatalf("%s is %s", x, got)
			}
		}
		if len(n.Names) > len(a.Names) || len(n.Owners) > len(a.Owners) || before != a.String()+b.String() {
			r.Fatal("more than there was, or a zone was changed")
		}
		if same := a.Narrowed(draw(r)); same.Equal(a) && same != a {
			r.Fatal("a copy without a difference")
		}
	})
}
