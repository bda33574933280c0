package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// TestSettledStateIsTheSame runs two states through the same changes of a store
// and the same placements: one remembers every task, the other one settles.
func TestSettledStateIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, err := store.NewLocal(store.Config{})
		if err != nil {
			t.Fatal(err)
		}
		view, w := s.Watch(store.KindTask)
		defer w.Close()
		states := []*State{New(), New()}
		states[1].Settle(view)
		for _, st := range states {
			for i := range 3 {
				n := &api.Node{}
				n.ID, n.Status.State, n.Spec.Availability = fmt.Sprint("n", i), swarm.NodeStateReady, swarm.NodeAvailabilityActive
				st.SetNode(n)
			}
		}
		spec := &api.TaskSpec{}
		var placed []*api.Task
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			for range rapid.IntRange(1, 3).Draw(t, "entries") {
				edit(t, s, spec)
			}
			changes, view, err := w.NextView(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			var pending []*api.Task
			for i, st := range states {
				for _, c := range changes {
					was, _ := c.Old.(*api.Task)
					is, _ := c.New.(*api.Task)
					if i == 0 {
						st.SetTask(c.ID, is, time.Time{})
					} else {
						st.Change(c.ID, was, is, time.Time{})
					}
				}
				if i == 1 {
					st.Settle(view)
				}
			}
			for task := range store.List[*api.Task](view) {
				if task.Status.State == swarm.TaskStatePending && states[0].tasks.get(task.ID) == nil && rapid.Bool().Draw(t, "schedule") {
					pending = append(pending, task)
				}
			}
			placed = append(placed, pending...)
			for _, st := range states {
				st.Schedule(pending, time.Time{})
			}
			a, b := held(states[0]), held(states[1])
			if !maps.Equal(a, b) {
				t.Fatalf("%v\nsettled: %v", a, b)
			}
			for i, st := range states {
				if n := len(slices.Collect(st.tasks.all())); n != st.tasks.count {
					t.Fatalf("state %d counts %d tasks and has %d", i, st.tasks.count, n)
				}
			}
			// Only placements that nobody has heard of are kept beside the view.
			for id, task := range states[1].tasks.other {
				if task == nil || !slices.ContainsFunc(placed, func(p *api.Task) bool { return p.ID == id }) {
					t.Fatalf("%s is kept beside the view: %v", id, task)
				}
			}
		}
	})
}

// edit writes one entry of random changes.
func edit(t *rapid.T, s *store.Store, spec *api.TaskSpec) {
	_, err := s.Update(context.Background(), func(tx *store.Tx) error {
		always := &api.Task{ID: api.NewID(), Spec: spec}
		if err := store.Create(tx, always); err != nil {
			return err
		}
		for range rapid.IntRange(1, 4).Draw(t, "writes") {
			id := fmt.Sprint("t", rapid.IntRange(0, 9).Draw(t, "task"))
			task := &api.Task{ID: id, ServiceID: "s", Spec: spec, Status: swarm.TaskStatus{State: swarm.TaskStatePending}}
			old := store.Get[*api.Task](tx, id)
			if old == nil {
				if err := store.Create(tx, task); err != nil {
					return err
				}
				continue
			}
			*task = *old
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				if err := store.Delete[*api.Task](tx, id); err != nil {
					return err
				}
				continue
			case 1:
				task.NodeID, task.Status.State = fmt.Sprint("n", rapid.IntRange(0, 3).Draw(t, "node")), swarm.TaskStateAssigned
			case 2:
				task.Status.State = swarm.TaskStateFailed
			case 3:
				task.DesiredState = rapid.SampledFrom([]swarm.TaskState{swarm.TaskStateRunning, swarm.TaskStateShutdown}).Draw(t, "desired")
			}
			if err := store.Put(tx, task); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// held is what a state counts, by task, and of its nodes.
func held(s *State) map[string]string {
	out := map[string]string{}
	for t := range s.tasks.all() {
		out[t.ID] = fmt.Sprint(t.NodeID, " ", t.DesiredState)
	}
	for id, n := range s.nodes {
		out[id] = fmt.Sprint(n.tasks, n.services, n.leaving)
	}
	for _, id := range slices.Collect(maps.Keys(s.strays)) {
		out["stray "+id] = fmt.Sprint(s.strays[id])
	}
	return out
}
