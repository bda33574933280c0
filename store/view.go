package store

import (
	"iter"

	"github.com/hashicorp/go-memdb"

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
	db    *memdb.MemDB
	txn   *memdb.Txn // read-only
	index uint64

	counts counts
}

// counts is how many objects there are of each kind.
type counts [kinds + 1]int

var _ Reader = (*View)(nil)

func newView(db *memdb.MemDB, index uint64, c counts) *View {
	snap := db.Snapshot()
	return &View{db: snap, txn: snap.Txn(false), index: index, counts: c}
}

// Index is that of the last log entry that the view holds.
func (v *View) Index() uint64 { return v.index }

func (v *View) get(k Kind, id string) any { return first(v.txn, k, id) }

func (v *View) list(k Kind, by By) iter.Seq[any] { return all(v.txn, k, by) }

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
		return v.counts[kindOf[T]()]
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

func first(txn *memdb.Txn, k Kind, id string) any {
	o, err := txn.First(k.String(), indexID, id)
	if err != nil {
		panic(err) // the schema has the table and the index
	}
	return o
}

func all(txn *memdb.Txn, k Kind, by By) iter.Seq[any] {
	if k == KindTask && by.ofSpec() {
		return bySpec(txn, by)
	}
	return rows(txn, k.String(), by)
}

func rows(txn *memdb.Txn, table string, by By) iter.Seq[any] {
	return func(yield func(any) bool) {
		index := by.index
		if by.prefix {
			index += "_prefix"
		}
		it, err := txn.Get(table, index, by.key)
		if err != nil {
			return // the kind has no such index: nothing matches
		}
		for o := it.Next(); o != nil; o = it.Next() {
			if (by.match == nil || by.match(o)) && !yield(o) {
				return
			}
		}
	}
}

// bySpec finds tasks through their specs: tasks themselves are not indexed by
// what their specs refer to.
func bySpec(txn *memdb.Txn, by By) iter.Seq[any] {
	return func(yield func(any) bool) {
		for o := range rows(txn, tableSpec, by) {
			row := o.(*specRow)
			of := ByService(row.service)
			if row.service == "" {
				of = By{index: indexID, key: row.key}
			}
			for o := range rows(txn, KindTask.String(), of) {
				if t := o.(*api.Task); t.Spec == row.spec && !yield(t) {
					return
				}
			}
		}
	}
}

func specOf(txn *memdb.Txn, key string) *specRow {
	o, err := txn.First(tableSpec, indexID, key)
	if err != nil {
		panic(err) // the schema has the table and the index
	}
	row, _ := o.(*specRow)
	return row
}
