package agent

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

func networkOf(id string, endpoints int) *swarmpb.NetworkEndpoints {
	n := &swarmpb.NetworkEndpoints{NetworkId: id}
	for i := range endpoints {
		n.Put = append(n.Put, &swarmpb.OverlayEndpoint{Id: fmt.Sprint(i), Addresses: []string{"10.0.0.1"}})
	}
	return n
}

// An update is handed on when its last message has come, and not before.
func TestUpdateInParts(t *testing.T) {
	var u telling
	first := &swarmpb.EndpointsUpdate{Complete: true, DataPort: 4789, More: true, Networks: []*swarmpb.NetworkEndpoints{networkOf("a", 2)}}
	first.Networks[0].Whole = true
	if got, err := u.take(first); got != nil || err != nil {
		t.Fatal(got, err)
	}
	if got, err := u.take(&swarmpb.EndpointsUpdate{More: true, Keys: &swarmpb.OverlayKeys{Send: 7}}); got != nil || err != nil {
		t.Fatal(got, err)
	}
	got, err := u.take(&swarmpb.EndpointsUpdate{Networks: []*swarmpb.NetworkEndpoints{networkOf("a", 3), networkOf("b", 1)}})
	if err != nil || !got.Complete || got.DataPort != 4789 || got.Keys.Send != 7 || len(got.Networks) != 3 || !got.Networks[0].Whole || len(got.Networks[1].Put) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err = u.take(&swarmpb.EndpointsUpdate{}); err != nil || got.Complete || len(got.Networks) != 0 {
		t.Errorf("the next begins with %+v, %v", got, err)
	}
}

func TestTooMuchIsRefused(t *testing.T) {
	var u telling
	if _, err := u.take(&swarmpb.EndpointsUpdate{Networks: []*swarmpb.NetworkEndpoints{networkOf("../etc", 0)}}); !api.Is(err, api.Internal) || !strings.Contains(err.Error(), `"../etc"`) {
		t.Error(err)
	}
	part := &swarmpb.EndpointsUpdate{More: true, Networks: []*swarmpb.NetworkEndpoints{networkOf("a", 1<<15)}}
	var err error
	for i := 0; err == nil; i++ {
		if _, err = u.take(part); i > 20 {
			t.Fatal("it takes all there is")
		}
	}
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "at most 8192 and 524288") {
		t.Error(err)
	}
	u, part = telling{}, &swarmpb.EndpointsUpdate{}
	for i := range maxToldNetworks + 1 {
		part.Networks = append(part.Networks, networkOf(fmt.Sprint(i), 0))
	}
	if _, err := u.take(part); !api.Is(err, api.ResourceExhausted) {
		t.Error(err)
	}
}

// Whatever comes: what is handed on is complete, and within the limits.
func FuzzTelling(f *testing.F) {
	for _, m := range []*swarmpb.EndpointsUpdate{
		{Complete: true, DataPort: 1 << 20, Networks: []*swarmpb.NetworkEndpoints{networkOf("a", 2)}},
		{More: true, Keys: &swarmpb.OverlayKeys{Send: 1, Keys: []*swarmpb.OverlayKey{{Id: 1, Secret: make([]byte, 32)}, {Id: 2, Secret: []byte("short")}}}},
		{Networks: []*swarmpb.NetworkEndpoints{{
			NetworkId: "i", Network: &swarmpb.Network{Id: "i"}, OwnAddresses: []string{"10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "x"},
			Put:         []*swarmpb.OverlayEndpoint{{Id: "t", Addresses: []string{"10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3", "fe80::1%eth0"}, NodeAddr: "nowhere"}, {Id: "u", Addresses: []string{"fd00::1"}, NodeAddr: "192.0.2.1", Name: strings.Repeat("n", 300)}},
			PutServices: []*swarmpb.OverlayService{{Id: "s", Ports: []*swarmpb.OverlayPort{{Published: 1 << 16, Target: 80}, {Published: 80}, {Protocol: "tcp", Published: 80, Target: 65535}}}},
		}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &swarmpb.EndpointsUpdate{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		var u telling
		for range 2 {
			got, err := u.take(m)
			if err != nil || got == nil {
				continue
			}
			for _, n := range got.Networks {
				check(t, &n)
			}
		}
	})
}

func check(t *testing.T, n *api.NetworkUpdate) {
	t.Helper()
	if !validID(n.ID) || len(n.Own) > 2 || n.Ingress == nil && n.Own != nil {
		t.Errorf("network %q with %v", n.ID, n.Own)
	}
	for _, e := range n.Put {
		if e.ID == "" || len(e.Addresses) == 0 || len(e.Addresses) > 2 || len(e.Addresses) == 2 && e.Addresses[0].Is4() == e.Addresses[1].Is4() || len(e.Name) > 253 {
			t.Errorf("%+v", e)
		}
	}
	for _, s := range n.PutServices {
		for _, p := range s.Ports {
			if p.Published == 0 || p.Target == 0 {
				t.Errorf("%+v", p)
			}
		}
	}
}
