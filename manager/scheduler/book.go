package scheduler

import (
	"iter"

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
	heard []string             // ids that were heard of since base
	count int
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

func (b *book) put(t *api.Task) {
	if b.get(t.ID) == nil {
		b.count++
	}
	b.other[t.ID] = t
}

func (b *book) remove(id string) {
	if b.get(id) != nil {
		b.count--
	}
	b.other[id] = nil
}

// hear notes that base may say of a task what the book does, with the next one.
func (b *book) hear(id string) {
	if b.base != nil {
		b.heard = append(b.heard, id)
	}
}

// settle takes a view that has all that was heard, and nothing after it.
func (b *book) settle(view *store.View) {
	first := b.base == nil
	b.base = view
	if first {
		for id := range b.other {
			b.heard = append(b.heard, id)
		}
	}
	for _, id := range b.heard {
		if t, ok := b.other[id]; ok && t == b.settled(id) {
			delete(b.other, id)
		}
	}
	b.heard = b.heard[:0]
	if first && len(b.other) == 0 {
		b.other, b.heard = map[string]*api.Task{}, nil // which were as large as the swarm
	}
}

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
