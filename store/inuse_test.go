package store

import (
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Who removes a network sees nobody in it; before that is applied, somebody is.
func TestANetworkThatIsTakenUpMeanwhileStays(t *testing.T) {
	for what, take := range map[string]func(tx *Tx) error{
		"service": func(tx *Tx) error {
			s := &api.Service{}
			s.ID, s.Spec.Name = "s", "s"
			s.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "n"}}
			return Create(tx, s)
		},
		"published port": func(tx *Tx) error {
			s := &api.Service{}
			s.ID, s.Spec.Name = "s", "s"
			s.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, Protocol: network.TCP}}}
			return Create(tx, s)
		},
		"container": func(tx *Tx) error {
			return Create(tx, &api.Task{ID: "t", NodeID: "node", Spec: &api.TaskSpec{TaskSpec: swarm.TaskSpec{
				NetworkAttachmentSpec: &swarm.NetworkAttachmentSpec{ContainerID: "c"}, Networks: []swarm.NetworkAttachmentConfig{{Target: "n"}},
			}}})
		},
	} {
		s, err := NewLocal(Config{})
		if err != nil {
			t.Fatal(err)
		}
		update := func(fn func(tx *Tx) error) {
			t.Helper()
			if _, err := s.Update(t.Context(), fn); err != nil {
				t.Fatal(err)
			}
		}
		update(func(tx *Tx) error {
			n := &api.Network{}
			n.ID, n.Spec.Name, n.Spec.Ingress = "n", "n", true
			return Create(tx, n)
		})
		inUse := api.Errorf(api.Conflict, "in use")
		runs := 0
		_, err = s.Update(t.Context(), func(tx *Tx) error {
			if runs++; runs == 1 {
				update(take)
			}
			if Count[*api.Service](tx)+Count[*api.Task](tx) > 0 {
				return inUse
			}
			return Delete[*api.Network](tx, "n")
		})
		if !api.Is(err, api.Conflict) || runs != 2 || Get[*api.Network](s.View(), "n") == nil {
			t.Errorf("%s: %v after %d runs", what, err, runs)
		}
	}
}
