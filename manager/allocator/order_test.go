package allocator

import (
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// TestIngressComesFirst: scripts for Docker take a service's virtual addresses in this
// order; what it already has stays what it is.
func TestIngressComesFirst(t *testing.T) {
	s := NewState()
	own, ingress := newNetwork("own", subnet("10.1.0.0/24")), newNetwork("ingress", subnet("10.0.0.0/24"))
	ingress.Spec.Ingress = true
	for i, n := range []*api.Network{own, ingress} {
		made, err := Network(n, slices.Values([]*api.Network(nil)), pools(24, "10.0.0.0/8"), uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		s.SetNetwork(made)
	}
	o := service("a", swarm.PortConfig{TargetPort: 80})
	o.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "own"}}
	got, err := Service(o, api.Ports{}, s)
	if err != nil || len(got.Endpoint.VirtualIPs) != 2 || got.Endpoint.VirtualIPs[0].NetworkID != "ingress" || got.Endpoint.VirtualIPs[1].NetworkID != "own" {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, err := Service(got, api.Ports{}, s); again != nil || err != nil {
		t.Errorf("again: %+v, %v", again, err)
	}
}
