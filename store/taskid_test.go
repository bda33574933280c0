package store

import (
	"cmp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

// TestTaskIDOrder has ids as numbers stand in the order of ids as strings.
func TestTaskIDOrder(t *testing.T) {
	id := rapid.StringOfN(rapid.SampledFrom([]rune("\x00\x01az~")), 0, maxTaskID, maxTaskID)
	rapid.Check(t, func(t *rapid.T) {
		start := id.Draw(t, "both begin with")
		a, b := start+id.Draw(t, "a"), start+id.Draw(t, "b")
		a, b = a[:min(len(a), maxTaskID)], b[:min(len(b), maxTaskID)]
		x, _ := taskIDOf(a)
		y, _ := taskIDOf(b)
		if got, want := x.cmp(y), cmp.Compare(a, b); got != want {
			t.Fatalf("%q, %q: %d; want %d", a, b, got, want)
		}
		if g := x.in(7); g.in(0) != x || g.group() != 7 || g.cmp(y.in(8)) >= 0 || g.cmp(y.in(6)) <= 0 {
			t.Fatalf("%q in a group: %v", a, g)
		}
	})
}

// TestTaskIDTooLong refuses what indices have no room for, and finds nothing by it.
func TestTaskIDTooLong(t *testing.T) {
	s := newLocal(t, Config{})
	long := strings.Repeat("x", maxTaskID+1)
	_, err := s.Update(t.Context(), func(tx *Tx) error {
		return Create(tx, &api.Task{ID: long, Spec: &api.TaskSpec{}})
	})
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "an id of 26 bytes; at most 25 are accepted") {
		t.Fatal(err)
	}
	if Get[*api.Task](s.View(), long) != nil || Count[*api.Task](s.View(), ByIDPrefix(long)) != 0 {
		t.Fatal("found")
	}
	b, err := appendTask(nil, &api.Task{ID: long})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeTask(b, nil); err == nil || !strings.Contains(err.Error(), "a task's id of 26 bytes") {
		t.Fatal(err)
	}
	if len(api.NewID()) != maxTaskID {
		t.Fatal("ids are longer")
	}
}

// TestGroups has groups end with their last task.
func TestGroups(t *testing.T) {
	var ts tables
	task := func(id, node string, slot int) *api.Task {
		return &api.Task{ID: id, ServiceID: "s", Slot: slot, NodeID: node}
	}
	for _, step := range []struct {
		put, remove *api.Task
		nodes, open int
	}{
		{put: task("a", "", 1), open: 0},
		{put: task("a", "n", 1), nodes: 1, open: 1},
		{put: task("b", "m", 1), nodes: 2, open: 2},
		{put: task("b", "n", 2), nodes: 2, open: 1},
		{remove: task("a", "n", 1), nodes: 1, open: 1},
		{remove: task("b", "n", 2), nodes: 0, open: 0},
	} {
		if step.put != nil {
			ts.put(1, KindTask, step.put.ID, step.put)
		} else {
			ts.remove(1, KindTask, step.remove.ID)
		}
		if ts.nodes.size != step.nodes || ts.byNode.numbers.size != step.open || ts.slots.size != ts.tasks.size || ts.byService.numbers.size != min(ts.tasks.size, 1) {
			t.Fatalf("after %+v: %d entries of %d nodes, %d slots of %d services", step, ts.nodes.size, ts.byNode.numbers.size, ts.slots.size, ts.byService.numbers.size)
		}
	}
}
