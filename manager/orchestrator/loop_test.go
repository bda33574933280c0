package orchestrator

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// TestOrphans: who removes a node may not see a task that comes there at the same time.
// The loop ends it, whatever is wanted of it, and runs another; it does nothing to one
// of a node that it has not heard of yet.
func TestOrphans(t *testing.T) {
	st, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	o := &api.Service{}
	o.ID, o.Spec.Name, o.SpecVersion = "web", "web", 1
	o.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(3))}
	spec := o.TaskSpec()
	var tasks []*api.Task
	for i, c := range []struct {
		node          string
		state, desire swarm.TaskState
	}{
		{"gone", swarm.TaskStateRunning, swarm.TaskStateRunning},
		{"gone", swarm.TaskStateAssigned, swarm.TaskStateShutdown},
		{"new", swarm.TaskStateRunning, swarm.TaskStateRunning},
	} {
		task := &api.Task{
			ID: string(rune('a' + i)), ServiceID: "web", Slot: i + 1, NodeID: c.node, DesiredState: c.desire,
			Spec: spec, SpecVersion: 1, Status: swarm.TaskStatus{State: c.state},
		}
		tasks = append(tasks, task)
	}
	if _, err = st.Update(t.Context(), func(tx *store.Tx) error {
		if err := store.Create(tx, o); err != nil {
			return err
		}
		for _, task := range tasks {
			if err := store.Create(tx, task); err != nil {
				return err
			}
		}
		n := &api.Node{}
		n.ID = "new"
		return store.Create(tx, n)
	}); err != nil {
		t.Fatal(err)
	}
	s := &session{
		Loop: &Loop{Store: st}, agenda: newAgenda(), nodes: map[string]*api.Node{}, evict: map[string]string{}, shrunk: map[string]bool{},
		waits: map[string]bool{}, quiet: map[string]uint64{},
	}
	if err := s.plan(t.Context(), []string{"web"}, maxChanges); err != nil {
		t.Fatal(err)
	}
	view := st.View()
	for id, want := range map[string]swarm.TaskState{"a": swarm.TaskStateOrphaned, "b": swarm.TaskStateOrphaned, "c": swarm.TaskStateRunning} {
		if got := store.Get[*api.Task](view, id); got == nil || got.Status.State != want {
			t.Errorf("%s: %+v, want %s", id, got, want)
		}
	}
	n := 0
	for task := range store.List[*api.Task](view, store.BySlot("web", 1)) {
		if !api.ToldToEnd(task.DesiredState) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("slot 1 has %d tasks that shall run", n)
	}
}

// TestSettled: only a task that is alone in its slot, of a service that needed
// nothing, comes up without a plan.
func TestSettled(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *session, task *api.Task)
		other  *api.Task
		want   bool
	}{
		"the first in its slot":       {want: true},
		"the service had work to do":  {change: func(s *session, _ *api.Task) { delete(s.quiet, "web") }},
		"the service has changed":     {change: func(s *session, _ *api.Task) { s.quiet["web"]-- }},
		"it is to end":                {change: func(_ *session, task *api.Task) { task.DesiredState = swarm.TaskStateShutdown }},
		"it is of a job":              {change: func(_ *session, task *api.Task) { task.JobIteration = &swarm.Version{} }},
		"its node has less room":      {change: func(s *session, _ *api.Task) { s.shrunk["n"] = true }},
		"its node has none":           {change: func(s *session, _ *api.Task) { s.evict["a"] = "no room" }},
		"another has its room":        {change: func(_ *session, task *api.Task) { task.Evicted = "by another" }},
		"there was one before":        {other: &api.Task{ID: "b", ServiceID: "web", Slot: 1, Spec: &api.TaskSpec{}}},
		"there is one in a next slot": {other: &api.Task{ID: "b", ServiceID: "web", Slot: 2, Spec: &api.TaskSpec{}}, want: true},
	} {
		st, err := store.NewLocal(store.Config{})
		if err != nil {
			t.Fatal(err)
		}
		task := &api.Task{ID: "a", ServiceID: "web", Slot: 1, NodeID: "n", DesiredState: swarm.TaskStateRunning, Spec: &api.TaskSpec{}}
		version, err := st.Update(t.Context(), func(tx *store.Tx) error {
			for _, o := range []*api.Task{task, c.other} {
				if o != nil {
					if err := store.Create(tx, o); err != nil {
						return err
					}
				}
			}
			o := &api.Service{}
			o.ID, o.Spec.Name = "web", "web"
			return store.Create(tx, o)
		})
		if err != nil {
			t.Fatal(err)
		}
		s := &session{Loop: &Loop{Store: st}, quiet: map[string]uint64{"web": version}, shrunk: map[string]bool{}, evict: map[string]string{}}
		if c.change != nil {
			c.change(s, task)
		}
		if got := s.settled(task); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNoteRoom: a service that a node had no room for is planned again when a task
// comes to that node or leaves it, and not for anything else.
func TestNoteRoom(t *testing.T) {
	task := func(node string, state swarm.TaskState) *api.Task {
		return &api.Task{ID: "a", ServiceID: "other", NodeID: node, Status: swarm.TaskStatus{State: state}}
	}
	for name, c := range map[string]struct {
		was, is *api.Task
		want    bool
	}{
		"one ends there":             {task("full", swarm.TaskStateRunning), task("full", swarm.TaskStateShutdown), true},
		"one is deleted there":       {task("full", swarm.TaskStateRunning), nil, true},
		"an ended one is deleted":    {task("full", swarm.TaskStateShutdown), nil, false},
		"one comes there":            {task("", swarm.TaskStatePending), task("full", swarm.TaskStateAssigned), true},
		"one that is to be there":    {nil, task("full", swarm.TaskStateNew), false},
		"one gets on there":          {task("full", swarm.TaskStateReady), task("full", swarm.TaskStateRunning), false},
		"one ends on another node":   {task("n", swarm.TaskStateRunning), task("n", swarm.TaskStateFailed), false},
		"one that was on none ended": {task("", swarm.TaskStatePending), nil, false},
	} {
		s := &session{agenda: newAgenda(), refused: map[string]map[string]bool{"web": {"full": true}, "b": {"n2": true}}}
		s.noteRoom(c.was, c.is)
		if _, got := s.agenda.timers["web"]; got != c.want || len(s.agenda.timers) > 1 {
			t.Errorf("%s: %v", name, s.agenda.timers)
		}
	}
	s := &session{agenda: newAgenda(), quiet: map[string]uint64{}, waits: map[string]bool{}, refused: map[string]map[string]bool{}}
	s.remember("web", outcome{refused: []string{"n1", "n2", "n1"}})
	s.remember("web", outcome{refused: []string{"n2"}})
	if len(s.refused["web"]) != 1 || !s.refused["web"]["n2"] {
		t.Errorf("of the last plan: %v", s.refused)
	}
	if s.remember("web", outcome{}); len(s.refused) > 0 {
		t.Errorf("nothing is refused any more: %v", s.refused)
	}
}

// TestPluginsForPlans: where a service is to be balanced to depends on plugins.
func TestPluginsForPlans(t *testing.T) {
	a, b := &api.Node{}, &api.Node{}
	if !sameForPlans(a, b) {
		t.Error("the same is not")
	}
	if b.Description.Engine.Plugins = []swarm.PluginDescription{{Type: "Volume", Name: "nfs"}}; sameForPlans(a, b) {
		t.Error("a plugin does not count")
	}
}
