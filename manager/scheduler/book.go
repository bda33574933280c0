package scheduler

import (
	"iter"
	"maps"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// book has the tasks that hold something on a node. What the store says of them
// is not kept twice: there may be a million. So it is a view, and what is
// otherwise than there.
type book struct {
	base  *store.View          // nil: none
	other map[string]*api.Task // by id; nil: it holds nothing
	heard []heard              // since base
	count int
}

// heard is what the next base says of a task; nil: it holds nothing.
type heard struct {
	id   string
	task *api.Task
}

// holds reports whether a task holds something: from the moment it is assigned
// until it has ended.
func holds(t *api.Task) bool {
	return t != nil && t.NodeID != "" && !t.Attachment() && !api.Final(t.Status.State) && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned)
}

// get returns a task that holds something, or nil.
func (b *book) get(id string) *api.Task {
	if t, ok := b.other[id]; ok {
		return t
	}
	return b.settled(id)
}

// settled returns what base says.
func (b *book) settled(id string) *api.Task {
	if b.base == nil {
		return nil
	}
	if t := store.Get[*api.Task](b.base, id); holds(t) {
		return t
	}
	return nil
}

// before returns what get does, for who knows the version that was heard last.
func (b *book) before(id string, was *api.Task) *api.Task {
	if t, ok := b.other[id]; ok {
		return t
	}
	if holds(was) {
		return was
	}
	return nil
}

// add, replace and remove are for a task that the book has not, or has.
func (b *book) add(t *api.Task) {
	b.count++
	b.other[t.ID] = t
}

func (b *book) replace(t *api.Task) { b.other[t.ID] = t }

func (b *book) remove(id string) {
	b.count--
	if b.other[id] = nil; b.base == nil {
		delete(b.other, id)
	}
}

// hear notes what the next base says of a task.
func (b *book) hear(id string, t *api.Task) {
	if b.base == nil {
		return
	}
	if !holds(t) {
		t = nil
	}
	b.heard = append(b.heard, heard{id, t})
}

// settle takes a view that has all that was heard, and nothing after it.
func (b *book) settle(view *store.View) {
	if b.base == nil {
		b.base = view
		maps.DeleteFunc(b.other, func(id string, t *api.Task) bool { return t == b.settled(id) })
		if len(b.other) == 0 {
			b.other = map[string]*api.Task{} // it was as large as the swarm
		}
		return
	}
	b.base = view
	for _, h := range b.heard {
		if t, ok := b.other[h.id]; ok && t == h.task {
			delete(b.other, h.id)
		}
	}
	clear(b.heard)
	if b.heard = b.heard[:0]; cap(b.heard) > maxHeard {
		b.heard = nil
	}
}

// maxHeard is for how many changes there is room in quiet times.
const maxHeard = 1 << 10

// all gives the tasks in no order.
func (b *book) all() iter.Seq[*api.Task] {
	return func(yield func(*api.Task) bool) {
		for _, t := range b.other {
			if t != nil && !yield(t) {
				return
			}
		}
		if b.base == nil {
			return
		}
		for t := range store.List[*api.Task](b.base) {
			if _, ok := b.other[t.ID]; !ok && holds(t) && !yield(t) {
				return
			}
		}
	}
}
