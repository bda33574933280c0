package orchestrator

import (
	"context"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// slowLog lets something else be written before the entry that it is given next.
type slowLog struct {
	store  *store.Store
	index  uint64
	before func()
}

func (l *slowLog) Propose(_ context.Context, data []byte) (uint64, error) {
	if first := l.before; first != nil {
		l.before = nil
		first()
	}
	l.index++
	result, fatal := l.store.Apply(l.index, data)
	if fatal != nil {
		return 0, fatal
	}
	return l.index, result
}

// TestNodesThatComeBack: a plan may be written long after it was made, as the log waits
// for a disk or another manager. Tasks of a node that is back by then go on.
func TestNodesThatComeBack(t *testing.T) {
	for name, c := range map[string]struct {
		was  func(n *api.Node)
		then func(n *api.Node)
		want swarm.TaskState
	}{
		"it stays down": {
			func(n *api.Node) { n.Status.State = swarm.NodeStateDown }, nil, swarm.TaskStateShutdown,
		},
		"it is back": {
			func(n *api.Node) { n.Status.State = swarm.NodeStateDown },
			func(n *api.Node) { n.Status.State = swarm.NodeStateReady }, swarm.TaskStateRunning,
		},
		"it is not to be drained after all": {
			func(n *api.Node) { n.Spec.Availability = swarm.NodeAvailabilityDrain },
			func(n *api.Node) { n.Spec.Availability = swarm.NodeAvailabilityActive }, swarm.TaskStateRunning,
		},
		"it changes in what plans don't look at": {
			func(n *api.Node) { n.Status.State = swarm.NodeStateDown },
			func(n *api.Node) { n.Status.Message = "silent" }, swarm.TaskStateShutdown,
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := &slowLog{}
			st, err := store.New(store.Config{Proposer: log})
			if err != nil {
				t.Fatal(err)
			}
			log.store = st
			write := func(fn func(tx *store.Tx) error) {
				if _, err := st.Update(t.Context(), fn); err != nil {
					t.Fatal(err)
				}
			}
			o := &api.Service{}
			o.ID, o.Spec.Name, o.SpecVersion = "web", "web", 1
			o.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(1))}
			write(func(tx *store.Tx) error {
				n := &api.Node{}
				n.ID, n.Spec.Availability, n.Status.State = "n", swarm.NodeAvailabilityActive, swarm.NodeStateReady
				c.was(n)
				if err := store.Create(tx, n); err != nil {
					return err
				}
				if err := store.Create(tx, o); err != nil {
					return err
				}
				return store.Create(tx, &api.Task{
					ID: "a", ServiceID: "web", Slot: 1, NodeID: "n", DesiredState: swarm.TaskStateRunning,
					Spec: o.TaskSpec(), SpecVersion: 1, Status: swarm.TaskStatus{State: swarm.TaskStateRunning},
				})
			})
			s := &session{
				Loop: &Loop{Store: st}, agenda: newAgenda(), nodes: map[string]*api.Node{}, evict: map[string]string{}, shrunk: map[string]bool{},
				waits: map[string]bool{}, quiet: map[string]uint64{}, refused: map[string]map[string]bool{},
			}
			s.nodes["n"] = store.Get[*api.Node](st.View(), "n")
			if c.then != nil {
				log.before = func() {
					write(func(tx *store.Tx) error {
						n := *store.Get[*api.Node](tx, "n")
						c.then(&n)
						return store.Put(tx, &n)
					})
				}
			}
			if err := s.plan(t.Context(), []string{"web"}, maxChanges); err != nil {
				t.Fatal(err)
			}
			if log.before != nil {
				t.Error("nothing was written")
			}
			if got := store.Get[*api.Task](st.View(), "a"); got.DesiredState != c.want {
				t.Errorf("the task is to be %s, want %s", got.DesiredState, c.want)
			}
			if s.nodes["n"] != nil && c.want == swarm.TaskStateRunning {
				s.note(&store.Change{Kind: store.KindNode, ID: "n", Old: s.nodes["n"], New: store.Get[*api.Node](st.View(), "n")})
				if batch := s.agenda.take(1); len(batch) != 1 {
					t.Error("the news of the node plans nothing")
				}
			}
		})
	}
}
