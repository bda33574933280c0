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
		"service, before its update": func(tx *Tx) error {
			s := &api.Service{}
			s.ID, s.Spec.Name = "s", "s"
			s.PreviousSpec, s.UpdateStatus = &swarm.ServiceSpec{}, &swarm.UpdateStatus{State: swarm.UpdateStateUpdating}
			s.PreviousSpec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "n"}}
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

// Who removes a node ends its users' containers; before that is applied, there is one more.
func TestANodeThatGetsAContainerMeanwhile(t *testing.T) {
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
		n := &api.Node{}
		n.ID = "n"
		return Create(tx, n)
	})
	runs := 0
	update(func(tx *Tx) error {
		if runs++; runs == 1 {
			update(func(tx *Tx) error {
				return Create(tx, &api.Task{ID: "t", NodeID: "n", Spec: &api.TaskSpec{TaskSpec: swarm.TaskSpec{
					NetworkAttachmentSpec: &swarm.NetworkAttachmentSpec{ContainerID: "c"},
				}}})
			})
		}
		for task := range List[*api.Task](tx, ByNode("n")) {
			c := *task
			c.Status.State = swarm.TaskStateOrphaned
			if err := Put(tx, &c); err != nil {
				return err
			}
		}
		return Delete[*api.Node](tx, "n")
	})
	if task := Get[*api.Task](s.View(), "t"); runs != 2 || task.Status.State != swarm.TaskStateOrphaned || Get[*api.Node](s.View(), "n") != nil {
		t.Errorf("%d runs, %+v", runs, task)
	}
}

// Two managers give two services the same port at the same time: the second chooses
// again, or its user is told.
func TestAPortThatIsTakenMeanwhile(t *testing.T) {
	s, err := NewLocal(Config{})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(id string) *api.Service {
		o := &api.Service{}
		o.ID, o.Spec.Name = id, id
		o.Endpoint.Ports = []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: network.TCP, PublishMode: swarm.PortConfigPublishModeIngress}}
		return o
	}
	runs := 0
	_, err = s.Update(t.Context(), func(tx *Tx) error {
		if runs++; runs == 1 {
			if _, err := s.Update(t.Context(), func(tx *Tx) error { return Create(tx, publish("a")) }); err != nil {
				return err
			}
		}
		if Get[*api.Service](s.View(), "a") != nil && runs > 1 {
			return api.Errorf(api.Conflict, "taken")
		}
		return Create(tx, publish("b"))
	})
	if !api.Is(err, api.Conflict) || runs != 2 {
		t.Errorf("%v after %d runs", err, runs)
	}
	// It stays a's in whatever else is written of it.
	if _, err := s.Update(t.Context(), func(tx *Tx) error {
		o := *Get[*api.Service](tx, "a")
		o.Spec.Labels = map[string]string{"a": "b"}
		return Put(tx, &o)
	}); err != nil {
		t.Error(err)
	}
}
