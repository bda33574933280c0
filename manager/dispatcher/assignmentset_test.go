package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

type fataler interface {
	Helper()
	Fatal(args ...any)
}

func newStore(t fataler) *store.Store {
	t.Helper()
	s, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func update(t fataler, s *store.Store, fn func(tx *store.Tx) error) {
	t.Helper()
	if _, err := s.Update(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func newTask(id, node string, secrets ...string) *api.Task {
	spec := &swarm.ContainerSpec{Image: "image"}
	for _, s := range secrets {
		spec.Secrets = append(spec.Secrets, &swarm.SecretReference{SecretID: s})
	}
	return &api.Task{
		ID: id, ServiceID: "service" + strings.Join(secrets, "-"), NodeID: node, SpecVersion: 1,
		Spec:         &api.TaskSpec{TaskSpec: swarm.TaskSpec{ContainerSpec: spec}, ServiceName: "web"},
		Status:       swarm.TaskStatus{State: swarm.TaskStateAssigned},
		DesiredState: swarm.TaskStateRunning,
	}
}

func newSecret(id string) *api.Secret {
	return &api.Secret{Secret: swarm.Secret{ID: id, Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: id}, Data: []byte("x")}}}
}

// text shows changes as words: +task t1, -secret s1.
func text(changes []*swarmpb.AssignmentChange) string {
	var words []string
	for _, c := range changes {
		sign := "+"
		if c.Action == swarmpb.AssignmentChange_REMOVE {
			sign = "-"
		}
		switch {
		case c.Assignment.GetTask() != nil:
			words = append(words, sign+c.Assignment.GetTask().Id)
		case c.Assignment.GetSecret() != nil:
			words = append(words, sign+c.Assignment.GetSecret().Id)
		case c.Assignment.GetConfig() != nil:
			words = append(words, sign+c.Assignment.GetConfig().Id)
		}
	}
	return strings.Join(words, " ")
}

func TestAssignmentSet(t *testing.T) {
	s := newStore(t)
	set := newAssignmentSet("node1", &specCache{})
	step := func(want string, fn func(tx *store.Tx) error, ids ...string) {
		t.Helper()
		update(t, s, fn)
		marked := map[string]struct{}{}
		for _, id := range ids {
			marked[id] = struct{}{}
		}
		if got := text(set.update(s.View(), len(ids) == 0, marked)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	change := func(id string, f func(*api.Task)) func(tx *store.Tx) error {
		return func(tx *store.Tx) error {
			task := *store.Get[*api.Task](tx, id)
			f(&task)
			return store.Put(tx, &task)
		}
	}
	create := func(tasks ...*api.Task) func(tx *store.Tx) error {
		return func(tx *store.Tx) error {
			for _, task := range tasks {
				if err := store.Create(tx, task); err != nil {
					return err
				}
			}
			return nil
		}
	}
	pending := newTask("pending", "node1")
	pending.Status.State = swarm.TaskStatePending
	ended := newTask("ended", "node1", "s1")
	ended.Status.State = swarm.TaskStateFailed
	update(t, s, func(tx *store.Tx) error { return store.Create(tx, newSecret("s1")) })

	step("+ended", create(pending, ended, newTask("other", "node2", "s1")))
	step("+s1 +t1", create(newTask("t1", "node1", "s1")), "t1")
	step("+t2", create(newTask("t2", "node1", "s1")), "t2")
	step("", change("t1", func(t *api.Task) { t.Status.State = swarm.TaskStateRunning }), "t1")
	step("+t1", change("t1", func(t *api.Task) { t.DesiredState = swarm.TaskStateShutdown }), "t1")
	step("", change("t1", func(t *api.Task) { t.Status.State = swarm.TaskStateShutdown }), "t1")
	step("-s1", change("t2", func(t *api.Task) { t.Status.State = swarm.TaskStateFailed }), "t2")
	step("-t2", func(tx *store.Tx) error { return store.Delete[*api.Task](tx, "t2") }, "t2")
	step("+pending", change("pending", func(t *api.Task) { t.Status.State = swarm.TaskStateAssigned }), "pending")
	step("-t1", func(tx *store.Tx) error { return store.Delete[*api.Task](tx, "t1") })
	step("+s1 +t3", create(newTask("t3", "node1", "s1")), "t3")
	orphan := func(t *api.Task) { t.Status.State = swarm.TaskStateOrphaned }
	step("-t3 -s1", change("t3", orphan), "t3")
	step("", change("other", orphan), "t3", "other")
	step("", func(*store.Tx) error { return nil }, "never", "other")
}

// What a node knows after any number of increments, whichever changes they
// bundle, is what a complete set would tell it.
func TestIncrementsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newStore(t)
		for i := range 3 {
			update(t, s, func(tx *store.Tx) error { return store.Create(tx, newSecret(fmt.Sprint("s", i))) })
		}
		set := newAssignmentSet("node1", &specCache{})
		var generation [6]int
		known, marked := map[string]bool{}, map[string]struct{}{}
		flush := func(all bool) {
			for _, w := range strings.Fields(text(set.update(s.View(), all, marked))) {
				if w[0] == '+' {
					known[w[1:]] = true
				} else {
					delete(known, w[1:])
				}
			}
			marked = map[string]struct{}{}
		}
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			slot := rapid.IntRange(0, 5).Draw(t, "slot")
			id := fmt.Sprint("t", slot, "-", generation[slot])
			update(t, s, func(tx *store.Tx) error {
				old := store.Get[*api.Task](tx, id)
				if old == nil {
					node := rapid.SampledFrom([]string{"node1", "node1", "node2"}).Draw(t, "node")
					return store.Create(tx, newTask(id, node, fmt.Sprint("s", i%3)))
				}
				if rapid.Bool().Draw(t, "delete") {
					generation[slot]++ // ids are not used again
					return store.Delete[*api.Task](tx, id)
				}
				task := *old
				states := []swarm.TaskState{swarm.TaskStateAssigned, swarm.TaskStateRunning, swarm.TaskStateFailed}
				at := slices.Index(states, task.Status.State)
				task.Status.State = states[rapid.IntRange(at, 2).Draw(t, "state")]
				return store.Put(tx, &task)
			})
			marked[id] = struct{}{}
			if rapid.Bool().Draw(t, "flush") {
				flush(rapid.IntRange(0, 9).Draw(t, "all") == 0)
			}
		}
		flush(false)
		want := map[string]bool{}
		for task := range store.List[*api.Task](s.View(), store.ByNode("node1")) {
			want[task.ID] = true
			if !api.Final(task.Status.State) {
				want[task.Spec.ContainerSpec.Secrets[0].SecretID] = true
			}
		}
		if fmt.Sprint(known) != fmt.Sprint(want) {
			t.Fatalf("the node knows %v, it should know %v", known, want)
		}
	})
}

// One task changes on a node with many, in a swarm of many nodes.
func BenchmarkIncrement(b *testing.B) {
	for _, tasks := range []int{100, 10_000} {
		b.Run(fmt.Sprint(tasks, "tasks"), func(b *testing.B) {
			s := newStore(b)
			for from := 0; from < tasks; from += 1000 {
				update(b, s, func(tx *store.Tx) error {
					for i := from; i < min(from+1000, tasks); i++ {
						if err := store.Create(tx, newTask(fmt.Sprint("t", i), fmt.Sprint("node", i%2))); err != nil {
							return err
						}
					}
					return nil
				})
			}
			set := newAssignmentSet("node0", &specCache{})
			view := s.View()
			set.update(view, true, nil)
			ids := map[string]struct{}{"t0": {}}
			b.ReportAllocs()
			for b.Loop() {
				delete(set.tasks, "t0")
				set.update(view, false, ids)
			}
		})
	}
}
