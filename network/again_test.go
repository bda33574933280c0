package network_test

import (
	"net/netip"
	"slices"
	"testing"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// TestAddressAgain: a container that comes back has the address that it had, unless
// somebody else has it by now, or it can't be one there any more.
func TestAddressAgain(t *testing.T) {
	n := newNode(t)
	n.create(dnet.CreateRequest{Name: "own", IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{{
		Subnet: netip.MustParsePrefix("10.60.0.0/24"), IPRange: netip.MustParsePrefix("10.60.0.128/25"),
	}}}})
	had := func(address string) map[string]*dnet.EndpointSettings {
		return map[string]*dnet.EndpointSettings{"own": {IPAddress: netip.MustParseAddr(address)}}
	}
	for _, c := range []struct{ id, had, want string }{
		{"a", "10.60.0.200", "10.60.0.200"},
		{"taken", "10.60.0.200", "10.60.0.128"},
		{"elsewhere", "172.17.0.9", "10.60.0.129"},
		{"not given out", "10.60.0.9", "10.60.0.130"},
		{"gateway", "10.60.0.1", "10.60.0.131"},
	} {
		j, err := n.Join(t.Context(), c.id[:1], had(c.had), nil)
		if err != nil || j.Endpoints["own"].IPAddress.String() != c.want {
			t.Errorf("%s: %+v, %v", c.id, j, err)
		}
	}
}

func TestLinkLocal(t *testing.T) {
	n := newNode(t)
	n.create(dnet.CreateRequest{Name: "own"})
	asked := func(l ...string) map[string]*dnet.EndpointSettings {
		c := &dnet.EndpointIPAMConfig{}
		for _, a := range l {
			c.LinkLocalIPs = append(c.LinkLocalIPs, netip.MustParseAddr(a))
		}
		return map[string]*dnet.EndpointSettings{"own": {IPAMConfig: c}}
	}
	for _, bad := range [][]string{{"10.0.0.1"}, {"fe80::1"}, {"169.254.1.1", "169.254.1.1"}} {
		if _, err := n.Join(t.Context(), "bad", asked(bad...), nil); !api.Is(err, api.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := n.Join(t.Context(), "c1", asked("169.254.1.1"), nil); err != nil {
		t.Fatal(err)
	}
	if got := n.fake.There().Sandboxes["c1"].Interfaces[0].Addresses; !slices.Contains(got, netip.MustParsePrefix("169.254.1.1/16")) {
		t.Errorf("addresses %s", got)
	}
}
