package allocator

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

func service(id string, ports ...swarm.PortConfig) *api.Service {
	s := &api.Service{}
	s.ID, s.Spec.Name = id, id
	s.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: ports}
	return s
}

func published(s *api.Service) []uint32 {
	var out []uint32
	for _, p := range s.Endpoint.Ports {
		out = append(out, p.PublishedPort)
	}
	return out
}

func TestServicePorts(t *testing.T) {
	ports := api.Ports{}
	a, err := Service(service("a", swarm.PortConfig{TargetPort: 80}, swarm.PortConfig{TargetPort: 81, PublishedPort: 30000}), ports, NewState())
	if err != nil || !slices.Equal(published(a), []uint32{30001, 30000}) {
		t.Fatal(published(a), err)
	}
	if again, err := Service(a, ports, NewState()); again != nil || err != nil {
		t.Error("allocated again:", again, err)
	}
	b := service("b", swarm.PortConfig{TargetPort: 80, PublishedPort: 30001})
	if _, err := Service(b, ports, NewState()); !api.Is(err, api.Conflict) || err.Error() != "port '30001' is already in use by service (a) as an ingress port" {
		t.Error(err)
	}
	host := service("b", swarm.PortConfig{TargetPort: 80, PublishedPort: 30001, PublishMode: swarm.PortConfigPublishModeHost})
	if _, err := Service(host, ports, NewState()); err != nil {
		t.Error("a port of the node itself is no port of the mesh:", err)
	}
	udp := service("c", swarm.PortConfig{TargetPort: 80, PublishedPort: 30001, Protocol: "udp"})
	if _, err := Service(udp, ports, NewState()); err != nil {
		t.Error("another protocol is another port:", err)
	}
	// The port stays when something else of the service changes.
	more := *a
	more.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 90}, {TargetPort: 80}}}
	c, err := Service(&more, api.Ports{}, NewState())
	if err != nil || !slices.Equal(published(c), []uint32{30000, 30001}) {
		t.Error(published(c), err)
	}
}

func TestPortsRunOut(t *testing.T) {
	ports := api.Ports{}
	for n := uint32(30000); n <= 32767; n++ {
		ports[api.Port{Number: n, Protocol: "tcp"}] = "other"
	}
	if _, err := Service(service("a", swarm.PortConfig{TargetPort: 80}), ports, NewState()); !api.Is(err, api.ResourceExhausted) {
		t.Error(err)
	}
}

func TestTaskMovesOn(t *testing.T) {
	now := time.Unix(1, 0)
	task := &api.Task{ID: "t", Spec: &api.TaskSpec{}, Status: swarm.TaskStatus{State: swarm.TaskStateNew}}
	task.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: "net", Aliases: []string{"x"}}}
	s, _ := Service(service("a", swarm.PortConfig{TargetPort: 80}), api.Ports{}, NewState())
	addresses := NewState()
	addresses.SetNetwork(&api.Network{Network: swarm.Network{ID: "net"}, Predefined: true})
	got, _ := Task(task, s, nil, addresses, now)
	if got.Status.State != swarm.TaskStatePending || got.Status.Message != "pending task scheduling" || got.Networks[0].NetworkID != "net" || len(got.Ports) != 1 {
		t.Errorf("%+v", got)
	}
	refused := api.Errorf(api.Conflict, "port is taken")
	waits, _ := Task(task, s, refused, addresses, now)
	if waits.Status.State != swarm.TaskStateNew || waits.Status.Err != "port is taken" {
		t.Errorf("%+v", waits.Status)
	}
	if again, _ := Task(waits, s, refused, addresses, now); again != nil {
		t.Error("the same reason is written twice")
	}
	gone, err := Task(task, s, nil, NewState(), now)
	if gone.Status.State != swarm.TaskStateNew || !strings.Contains(gone.Status.Err, "network net") || fullNetwork(err) != "" {
		t.Errorf("%+v, %v", gone, err)
	}
}

// Whatever services come, change and go: no two have a port, and what is
// allocated can be computed from them.
func TestPortsAreNeverShared(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		services := map[string]*api.Service{}
		for range 40 {
			id := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "service")
			if rapid.IntRange(0, 4).Draw(rt, "remove") == 0 {
				delete(services, id)
				continue
			}
			s := service(id)
			if old := services[id]; old != nil {
				s.Endpoint = old.Endpoint
			}
			for range rapid.IntRange(0, 3).Draw(rt, "ports") {
				s.Spec.EndpointSpec.Ports = append(s.Spec.EndpointSpec.Ports, swarm.PortConfig{
					TargetPort: rapid.Uint32Range(80, 82).Draw(rt, "target"), PublishedPort: rapid.SampledFrom([]uint32{0, 80, 30000}).Draw(rt, "published"),
				})
			}
			ports := api.Ports{}
			for _, o := range services {
				if o.ID != id {
					ports.Add(o)
				}
			}
			if c, err := Service(s, ports, NewState()); err == nil && c != nil {
				services[id] = c
			}
			owners := map[uint32]string{}
			for _, o := range services {
				for _, p := range o.Endpoint.Ports {
					if other, taken := owners[p.PublishedPort]; taken && other != o.ID {
						rt.Fatalf("%s and %s have port %d", other, o.ID, p.PublishedPort)
					}
					owners[p.PublishedPort] = o.ID
				}
			}
		}
	})
}
