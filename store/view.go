package store

import (
	"iter"

	"github.com/legion-swarm/legion/api"
)

// Reader is a consistent set of objects: a View, or a Tx with what it wrote.
type Reader interface {
	// get returns the object or nil.
	get(k Kind, id string) any
	// list iterates over objects in the order of the index.
	list(k Kind, by By) iter.Seq[any]
}

// View is an immutable snapshot. It may be used from any number of goroutines
// and kept as long as it is needed.
type View struct {
	tables tables
	index  uint64
}

var _ Reader = (*View)(nil)

// Index is that of the last log entry that the view holds.
func (v *View) Index() uint64 { return v.index }

func (v *View) get(k Kind, id string) any { return v.tables.get(k, id) }

func (v *View) list(k Kind, by By) iter.Seq[any] { return by.index(&v.tables, k) }

// Get returns the object with the id, or nil. In a Tx it also makes the
// transaction depend on the object: if another one writes it first, the
// function is run again.
func Get[T api.Object](r Reader, id string) T {
	o, _ := r.get(kindOf[T](), id).(T)
	return o
}

// List iterates over the objects that by selects (at most one By; none: all,
// in the order of ids). In a Tx, writing while iterating is fine: the
// iteration is over what was there at its start.
func List[T api.Object](r Reader, by ...By) iter.Seq[T] {
	return func(yield func(T) bool) {
		for o := range r.list(kindOf[T](), one(by)) {
			if !yield(o.(T)) {
				return
			}
		}
	}
}

// Count counts what List would give; in a View, at no cost without a By.
func Count[T api.Object](r Reader, by ...By) int {
	b := one(by)
	if v, ok := r.(*View); ok && len(by) == 0 {
		return v.tables.count(kindOf[T]())
	}
	n := 0
	for range r.list(kindOf[T](), b) {
		n++
	}
	return n
}

func one(by []By) By {
	switch len(by) {
	case 0:
		return ByIDPrefix("")
	case 1:
		return by[0]
	}
	panic("store: more than one By")
}
