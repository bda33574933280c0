package network_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	dnet "github.com/moby/moby/api/types/network"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

// managers are a swarm's, with one attachable network "web" (net1) and one that is
// not, "closed" (net2).
type managers struct {
	mu     sync.Mutex
	away   bool
	deaf   bool // calls are done, but nobody hears of it
	next   int
	places map[string]network.Grant
	asked  []network.AttachRequest
}

func newManagers() *managers { return &managers{places: map[string]network.Grant{}} }

var errAway = api.Errorf(api.Unavailable, "no manager answers")

func (m *managers) Attach(_ context.Context, r network.AttachRequest) (*network.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, r)
	net := overlayNetwork("net1", "web", "10.0.9.0/24")
	switch {
	case m.away:
		return nil, errAway
	case r.Network == "closed":
		return nil, api.Errorf(api.PermissionDenied, "could not attach to network closed: it is not manually attachable")
	case r.Network != "web" && r.Network != "net1":
		return nil, api.Errorf(api.NotFound, "network %s not found", r.Network)
	}
	maps.DeleteFunc(m.places, func(_ string, g network.Grant) bool { return g.Container == r.Container })
	taken := func(a netip.Addr) bool {
		for _, g := range m.places {
			if g.Addresses[0].Addr() == a {
				return true
			}
		}
		return false
	}
	a := netip.MustParseAddr("10.0.9.2")
	if len(r.Addresses) > 0 {
		if a = r.Addresses[0]; taken(a) {
			return nil, api.Errorf(api.Conflict, "network web: Address already in use: %s", a)
		}
	}
	for taken(a) {
		a = a.Next()
	}
	m.next++
	g := network.Grant{ID: fmt.Sprint("g", m.next), Container: r.Container, Network: net, Addresses: []netip.Prefix{netip.PrefixFrom(a, 24)}}
	m.places[g.ID] = g
	if m.deaf {
		return nil, errAway
	}
	return &g, nil
}

func (m *managers) Detach(_ context.Context, ids []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return errAway
	}
	for _, id := range ids {
		delete(m.places, id)
	}
	if m.deaf {
		return errAway
	}
	return nil
}

func (m *managers) Attached(context.Context) ([]network.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return nil, errAway
	}
	own := maps.Clone(m.places)
	delete(own, "other")
	return slices.Collect(maps.Values(own)), nil
}

// Withdrawn is known once ctx ends.
func (m *managers) Withdrawn(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (m *managers) set(away, deaf bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away, m.deaf = away, deaf
}

func names(l ...string) *dnet.EndpointSettings { return &dnet.EndpointSettings{DNSNames: l} }

func TestContainersGetPlacesInTheSwarm(t *testing.T) {
	w := newNode(t)
	if _, err := w.Join(t.Context(), "c0", map[string]*dnet.EndpointSettings{"web": nil}, nil); !api.Is(err, api.NotFound) {
		t.Error("a node of no swarm:", err)
	}
	m := newManagers()
	w.SetSwarm(m)
	j, err := w.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"web": names("db", "alias")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := j.Endpoints["web"]; e == nil || e.IPAddress.String() != "10.0.9.2" || e.IPPrefixLen != 24 || e.NetworkID != "net1" || e.IPAMConfig != nil {
		t.Errorf("%+v", j.Endpoints)
	}
	if r := m.asked[0]; !slices.Equal(r.Names, []string{"db", "alias"}) || r.Container != "c1" {
		t.Errorf("%+v", r)
	}
	if in, err := w.Inspect("web"); err != nil || in.Containers["c1"].Name != "db" {
		t.Error(in, err)
	}
	for net, says := range map[string]string{"closed": "not manually attachable", "nosuch": "network nosuch not found"} {
		if _, err := w.Join(t.Context(), "c2", map[string]*dnet.EndpointSettings{net: nil}, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Error(err)
		}
	}
	taken := names("x")
	taken.IPAMConfig = &dnet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.9.2")}
	if _, err := w.Join(t.Context(), "c2", map[string]*dnet.EndpointSettings{"web": taken}, nil); !api.Is(err, api.Conflict) {
		t.Error(err)
	}
	mac := names("x")
	mac.MacAddress = dnet.HardwareAddr{2, 0, 0, 0, 0, 1}
	if _, err := w.Join(t.Context(), "c2", map[string]*dnet.EndpointSettings{"web": mac}, nil); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "mac-address") {
		t.Error(err)
	}
	if len(m.places) != 1 {
		t.Errorf("what failed left places: %v", m.places)
	}
	// Another one starts without a network of the swarm, and is connected later.
	w.join("c3", "bridge")
	if e, err := w.Connect(t.Context(), "c3", "web", names("three")); err != nil || e.IPAddress.String() != "10.0.9.3" {
		t.Fatal(e, err)
	}
	if err := w.Disconnect(t.Context(), "c3", "web", false); err != nil || len(m.places) != 1 {
		t.Error(err, m.places)
	}
	// A task's has its addresses.
	release, err := w.UseFor("t1", []*api.Network{overlayNetwork("net1", "web", "10.0.9.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Join(t.Context(), "t1", map[string]*dnet.EndpointSettings{"net1": given("10.0.9.99")}, nil); err != nil {
		t.Fatal(err)
	}
	release()
	for _, id := range []string{"c1", "c3", "t1"} {
		if err := w.Leave(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.places) != 0 || w.Unsettled() != 0 {
		t.Error(m.places, w.Unsettled())
	}
	if c := w.fake.There(); len(c.Overlays) != 0 {
		t.Errorf("left:\n%s", c)
	}
}

func TestAContainerKeepsItsPlaceWithoutManagers(t *testing.T) {
	w := newNode(t)
	m := newManagers()
	w.SetSwarm(m)
	web := map[string]*dnet.EndpointSettings{"web": names("a")}
	if _, err := w.Join(t.Context(), "c1", web, nil); err != nil {
		t.Fatal(err)
	}
	m.set(true, false)
	if err := w.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	j, err := w.Join(t.Context(), "c1", web, nil)
	if err != nil || j.Endpoints["web"].IPAddress.String() != "10.0.9.2" {
		t.Fatal(j, err)
	}
	if _, err := w.Join(t.Context(), "c2", web, nil); !api.Is(err, api.Unavailable) {
		t.Error(err)
	}
	m.set(false, false)
	if err := w.Agree(t.Context()); err != nil || len(m.places) != 1 {
		t.Error(err, m.places)
	}
}

// A place that managers gave to another while the node was away is lost.
func TestALostPlaceIsNotUsed(t *testing.T) {
	w := newNode(t)
	m := newManagers()
	w.SetSwarm(m)
	w.join("c1", "bridge")
	if _, err := w.Connect(t.Context(), "c1", "web", names("a")); err != nil {
		t.Fatal(err)
	}
	delete(m.places, "g1")
	if err := w.Agree(t.Context()); err != nil || len(m.places) != 1 || m.places["g2"].Addresses[0].String() != "10.0.9.2/24" {
		t.Error("given up, and still free:", err, m.places)
	}
	w.restart("c1")
	w.SetSwarm(m)
	g := m.places["g2"]
	delete(m.places, "g2")
	g.ID, g.Container = "other", "other-node's"
	m.places["other"] = g
	if err := w.Agree(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.fake.There().Sandboxes["c1"]; len(s.Interfaces) != 1 || s.Interfaces[0].Bridge == "" {
		t.Errorf("%s", s)
	}
}

// Whatever containers do, and whoever is away meanwhile: in the end managers and
// node know of the same places, and none is held for nobody.
func TestPlacesAgreeInTheEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newNode(t)
		m := newManagers()
		w.SetSwarm(m)
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			id := rapid.SampledFrom([]string{"c1", "c2", "c3"}).Draw(rt, "container")
			switch rapid.SampledFrom([]string{"join", "join", "leave", "connect", "disconnect", "away", "deaf", "back", "restart", "forget", "agree"}).Draw(rt, "step") {
			case "join":
				_, _ = w.Join(t.Context(), id, map[string]*dnet.EndpointSettings{"web": names(id)}, nil)
			case "leave":
				_ = w.Leave(t.Context(), id)
			case "connect":
				_, _ = w.Join(t.Context(), id, map[string]*dnet.EndpointSettings{"bridge": nil}, nil)
				_, _ = w.Connect(t.Context(), id, "web", names(id))
			case "disconnect":
				_ = w.Disconnect(t.Context(), id, "web", true)
			case "away":
				m.set(true, false)
			case "deaf":
				m.set(false, true)
			case "back":
				m.set(false, false)
			case "restart":
				w.restart("c1", "c2")
				w.SetSwarm(m)
			case "forget": // as after a day without the node
				m.mu.Lock()
				clear(m.places)
				m.mu.Unlock()
			case "agree":
				_ = w.Agree(t.Context())
			}
		}
		m.set(false, false)
		for range 2 {
			if err := w.Agree(t.Context()); err != nil {
				rt.Fatal(err)
			}
		}
		if w.Unsettled() != 0 {
			rt.Fatalf("%d are left over", w.Unsettled())
		}
		has := map[string]string{}
		if in, err := w.Inspect("net1"); err == nil {
			for id, e := range in.Containers {
				has[id] = e.IPv4Address.String()
			}
		}
		given := map[string]string{}
		for _, g := range m.places {
			given[g.Container] = g.Addresses[0].String()
		}
		if !maps.Equal(has, given) {
			rt.Fatalf("containers have %v, managers know of %v", has, given)
		}
	})
}
