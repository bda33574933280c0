package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

// logged keeps every entry, for other stores to take.
type logged struct {
	store   *Store
	entries [][]byte
}

func (l *logged) Propose(_ context.Context, data []byte) (uint64, error) {
	l.entries = append(l.entries, data)
	index := uint64(len(l.entries))
	result, fatal := l.store.Apply(index, data)
	return index, errors.Join(result, fatal)
}

// model is what the store should hold, kept in the most naive way.
type model struct {
	services map[string]*api.Service
	tasks    map[string]*api.Task
}

func (m model) clone() model { return model{maps.Clone(m.services), maps.Clone(m.tasks)} }

func (m model) nameTaken(name, but string) bool {
	for id, s := range m.services {
		if id != but && strings.EqualFold(s.Spec.Name, name) {
			return true
		}
	}
	return false
}

var states = []swarm.TaskState{"new", "pending", "running", "failed"}

// step does one random operation in the transaction and in the model, and
// reports whether they agree.
func step(t *rapid.T, tx *Tx, m model, now uint64) {
	id := fmt.Sprint("id", rapid.IntRange(0, 5).Draw(t, "id"))
	name := rapid.SampledFrom([]string{"web", "WEB", "db", "Db", "x"}).Draw(t, "name")
	switch rapid.IntRange(0, 5).Draw(t, "operation") {
	case 0:
		s := &api.Service{}
		s.ID, s.Spec.Name = id, name
		err := Create(tx, s)
		want := m.services[id] == nil && !m.nameTaken(name, id)
		if (err == nil) != want || err != nil && !api.Is(err, api.Exists) {
			t.Fatalf("create service %s %s: %v; want success: %v", id, name, err, want)
		}
		if err == nil {
			m.services[id] = s
		}
	case 1:
		old := m.services[id]
		s := &api.Service{}
		if old != nil {
			s = &api.Service{Service: old.Service}
		}
		s.ID, s.Spec.Name = id, name
		if got := Get[*api.Service](tx, id); (got == nil) != (old == nil) {
			t.Fatalf("get service %s: %v; want %v", id, got, old)
		} else if got != nil {
			s.Version = got.Version
		}
		err := Put(tx, s)
		switch {
		case old == nil && !api.Is(err, api.NotFound), old != nil && m.nameTaken(name, id) && !api.Is(err, api.Exists),
			old != nil && !m.nameTaken(name, id) && err != nil:
			t.Fatalf("put service %s: %v", id, err)
		}
		if err == nil {
			m.services[id] = s
		}
	case 2:
		if err := Delete[*api.Service](tx, id); (err == nil) != (m.services[id] != nil) {
			t.Fatalf("delete service %s: %v", id, err)
		}
		delete(m.services, id)
	case 3, 4:
		old := m.tasks[id]
		task := &api.Task{ID: id, ServiceID: fmt.Sprint("s", rapid.IntRange(0, 2).Draw(t, "service")), Slot: rapid.IntRange(1, 2).Draw(t, "slot"),
			NodeID: fmt.Sprint("n", rapid.IntRange(0, 2).Draw(t, "node"))}
		task.SpecVersion = uint64(rapid.IntRange(1, 2).Draw(t, "version"))
		task.Status.State, task.DesiredState = rapid.SampledFrom(states).Draw(t, "state"), rapid.SampledFrom(states).Draw(t, "desired")
		task.Spec = &api.TaskSpec{ServiceName: fmt.Sprintf("%s@%d", task.ServiceID, task.SpecVersion)}
		task.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: "net-" + task.ServiceID}}
		var err error
		if old == nil {
			err = Create(tx, task)
		} else {
			task.Version = Get[*api.Task](tx, id).Version
			err = Put(tx, task)
		}
		if err != nil {
			t.Fatalf("write task %s: %v", id, err)
		}
		m.tasks[id] = task
	case 5:
		if err := Delete[*api.Task](tx, id); (err == nil) != (m.tasks[id] != nil) {
			t.Fatalf("delete task %s: %v", id, err)
		}
		delete(m.tasks, id)
	}
}

// check compares every index with the model.
func check(t *rapid.T, r Reader, m model) {
	if got, want := ids(List[*api.Service](r)), slices.Sorted(maps.Keys(m.services)); !slices.Equal(got, want) {
		t.Fatalf("services %v; want %v", got, want)
	}
	for _, s := range m.services {
		if got := ids(List[*api.Service](r, ByName(strings.ToUpper(s.Spec.Name)))); !slices.Equal(got, []string{s.ID}) {
			t.Fatalf("service %s by name: %v", s.ID, got)
		}
	}
	checkTasks(t, r, m, "all", ByIDPrefix(""), func(*api.Task) bool { return true })
	for i := range 3 {
		node, service := fmt.Sprint("n", i), fmt.Sprint("s", i)
		checkTasks(t, r, m, "node", ByNode(node), func(t *api.Task) bool { return t.NodeID == node })
		checkTasks(t, r, m, "service", ByService(service), func(t *api.Task) bool { return t.ServiceID == service })
		checkTasks(t, r, m, "slot", BySlot(service, 1), func(t *api.Task) bool { return t.ServiceID == service && t.Slot == 1 })
		checkTasks(t, r, m, "network", ByNetwork("net-"+service), func(t *api.Task) bool { return t.ServiceID == service })
	}
	for _, s := range states {
		checkTasks(t, r, m, "state", ByTaskState(s), func(t *api.Task) bool { return t.Status.State == s })
		checkTasks(t, r, m, "desired", ByDesiredState(s), func(t *api.Task) bool { return t.DesiredState == s })
	}
}

func checkTasks(t *rapid.T, r Reader, m model, what string, by By, match func(*api.Task) bool) {
	var want []string
	for id, task := range m.tasks {
		if match(task) {
			want = append(want, id)
		}
	}
	slices.Sort(want)
	got := ids(List[*api.Task](r, by))
	slices.Sort(got)
	if !slices.Equal(got, want) || Count[*api.Task](r, by) != len(want) {
		t.Fatalf("tasks by %s %q: %v; want %v", what, by.key, got, want)
	}
}

func ids[T api.Object](seq func(func(T) bool)) (ids []string) {
	for o := range seq {
		ids = append(ids, idOf(o))
	}
	return ids
}

// TestAgainstModel runs random transactions against the store and the model;
// then a second store takes the log, and a third one a snapshot.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &logged{}
		now := time.Unix(1_700_000_000, 0)
		s, err := New(Config{Proposer: l, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		l.store = s
		first, w := s.Watch()
		defer w.Close()
		m := model{map[string]*api.Service{}, map[string]*api.Task{}}
		for range rapid.IntRange(1, 12).Draw(t, "transactions") {
			next := m.clone()
			abort := rapid.IntRange(0, 5).Draw(t, "abort") == 0
			index, err := s.Update(context.Background(), func(tx *Tx) error {
				for range rapid.IntRange(0, 8).Draw(t, "steps") {
					step(t, tx, next, s.View().Index()+1)
				}
				check(t, tx, next)
				if abort {
					return errAbort
				}
				return nil
			})
			if abort {
				if !errors.Is(err, errAbort) {
					t.Fatal(err)
				}
				check(t, s.View(), m)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if index != 0 && s.View().Index() != index {
				t.Fatalf("view at %d after update %d", s.View().Index(), index)
			}
			m = next
			check(t, s.View(), m)
			checkSharing(t, s, m)
		}
		follow(t, first, s.View(), w)
		again(t, s, l)
	})
}

var errAbort = errors.New("abort")

// checkSharing has the tasks of one spec version share one spec, and no spec
// stay that nobody uses.
func checkSharing(t *rapid.T, s *Store, m model) {
	specs := map[string]*api.TaskSpec{}
	for task := range List[*api.Task](s.View()) {
		key := specKey(task)
		if specs[key] == nil {
			specs[key] = task.Spec
		}
		if task.Spec == nil || specs[key] != task.Spec || task.Spec.ServiceName != fmt.Sprintf("%s@%d", task.ServiceID, task.SpecVersion) {
			t.Fatalf("task %s has spec %+v", task.ID, task.Spec)
		}
	}
	n := s.View().tables.specs.size
	if n != len(specs) || len(s.refs) != len(specs) {
		t.Fatalf("%d specs and %d counters; %d are in use", n, len(s.refs), len(specs))
	}
}

// follow applies a watcher's changes to the view it came with.
func follow(t *rapid.T, from, to *View, w *Watcher) {
	have := map[string]any{}
	for k, all := range contents(from) {
		for _, o := range all {
			have[k.String()+idOf(o)] = o
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	changes, err := w.Next(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, c := range changes {
		key := c.Kind.String() + c.ID
		if have[key] != c.Old && !(have[key] == nil && c.Old == nil) {
			t.Fatalf("change of %s: old is not what was there", key)
		}
		have[key] = c.New
		if c.New == nil {
			delete(have, key)
		}
	}
	for k, all := range contents(to) {
		for _, o := range all {
			if key := k.String() + idOf(o); have[key] != o {
				t.Fatalf("%s was not watched", key)
			}
			delete(have, k.String()+idOf(o))
		}
	}
	if len(have) > 0 {
		t.Fatalf("watched, but not there: %v", have)
	}
}

// again gives the log to another store, which must be equal in every byte.
func again(t *rapid.T, s *Store, l *logged) {
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range l.entries {
		if _, fatal := r.Apply(uint64(i+1), e); fatal != nil {
			t.Fatal(fatal)
		}
	}
	if d := cmp.Diff(contents(s.View()), contents(r.View()), same...); d != "" {
		t.Fatal(d)
	}
	var a, b bytes.Buffer
	if err := errors.Join(s.Snapshot()(&a), r.Snapshot()(&b)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Fatal("two stores with one log give different snapshots")
	}
	third, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Restore(&a); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(contents(s.View()), contents(third.View()), same...); d != "" {
		t.Fatal(d)
	}
}
