package store

import (
	"iter"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/legion-swarm/legion/api"
)

// maxChange bounds what one transaction may write, in encoded bytes: an entry
// of the log is held in memory and sent to every manager as a whole.
const maxChange = 8 << 20

// Tx is a transaction under way: a snapshot with what was written on top. It
// belongs to the function that Update runs, and to one goroutine.
type Tx struct {
	view  *View
	txn   *memdb.Txn // private, on view's snapshot
	now   time.Time
	reads map[ref]uint64
	order []ref          // of writes, first write first
	write map[ref]change // the last write of each
}

type ref struct {
	kind Kind
	id   string
}

// change is what a transaction does with an object; a nil object deletes it.
type change struct {
	object any
	base   uint64 // Version.Index of what it replaces; 0: it is new
}

var _ Reader = (*Tx)(nil)

func (tx *Tx) get(k Kind, id string) any {
	tx.read(k, id)
	return first(tx.txn, k, id)
}

func (tx *Tx) list(k Kind, by By) iter.Seq[any] { return all(tx.txn, k, by) }

// read notes the version that the transaction depends on, and returns it.
func (tx *Tx) read(k Kind, id string) uint64 {
	r := ref{k, id}
	if v, ok := tx.reads[r]; ok {
		return v
	}
	var v uint64
	if o := tx.view.get(k, id); o != nil {
		v = metaOf(o).Version.Index
	}
	tx.reads[r] = v
	return v
}

// Create adds an object. Exists if its id, or its name where names are unique,
// is taken. CreatedAt and UpdatedAt are set; o is not touched.
func Create[T api.Object](tx *Tx, o T) error {
	k := kindOf[T]()
	id := idOf(o)
	if id == "" {
		return api.Errorf(api.Invalid, "a %s needs an id", k)
	}
	if tx.get(k, id) != nil {
		return api.Errorf(api.Exists, "%s %s already exists", k, id)
	}
	if err := tx.nameFree(k, o); err != nil {
		return err
	}
	c := clone(o)
	m := metaOf(c)
	m.CreatedAt, m.UpdatedAt = tx.now, tx.now
	return tx.put(ref{k, id}, c)
}

// Put replaces an object that exists. OutOfSequence if o's Version.Index is
// not that of the object in the snapshot. UpdatedAt is set; o is not touched.
func Put[T api.Object](tx *Tx, o T) error {
	k := kindOf[T]()
	id := idOf(o)
	old := tx.get(k, id)
	if old == nil {
		return api.Errorf(api.NotFound, "%s %s not found", k, id)
	}
	if metaOf(old).Version.Index != metaOf(o).Version.Index {
		return api.Errorf(api.OutOfSequence, "update out of sequence: %s %s has version %d, not %d", k, id, metaOf(old).Version.Index, metaOf(o).Version.Index)
	}
	if fold(nameOf(old)) != fold(nameOf(o)) {
		if err := tx.nameFree(k, o); err != nil {
			return err
		}
	}
	c := clone(o)
	m := metaOf(c)
	m.CreatedAt, m.UpdatedAt = metaOf(old).CreatedAt, tx.now
	return tx.put(ref{k, id}, c)
}

// Delete removes an object. NotFound if there is none.
func Delete[T api.Object](tx *Tx, id string) error {
	k := kindOf[T]()
	old := tx.get(k, id)
	if old == nil {
		return api.Errorf(api.NotFound, "%s %s not found", k, id)
	}
	tx.note(ref{k, id}, nil)
	return tx.txn.Delete(k.String(), old)
}

func (tx *Tx) put(r ref, o any) error {
	if t, ok := o.(*api.Task); ok {
		if err := tx.shareSpec(t); err != nil {
			return err
		}
	}
	tx.note(r, o)
	return tx.txn.Insert(r.kind.String(), o)
}

// shareSpec does what apply will do: the first spec of its key is every task's.
func (tx *Tx) shareSpec(t *api.Task) error {
	if t.Spec == nil {
		return api.Errorf(api.Invalid, "task %s has no spec", t.ID)
	}
	if row := specOf(tx.txn, specKey(t)); row != nil {
		t.Spec = row.spec
		return nil
	}
	return tx.txn.Insert(tableSpec, newSpecRow(t, t.Spec))
}

func (tx *Tx) note(r ref, o any) {
	if _, ok := tx.write[r]; !ok {
		tx.order = append(tx.order, r)
	}
	tx.write[r] = change{object: o, base: tx.reads[r]}
}

// nameFree reports Exists if another object of the kind has o's name.
func (tx *Tx) nameFree(k Kind, o any) error {
	if !k.named() {
		return nil
	}
	return nameFree(tx.txn, k, o)
}

func nameFree(txn *memdb.Txn, k Kind, o any) error {
	for other := range all(txn, k, ByName(nameOf(o))) {
		if idOf(other) != idOf(o) {
			return api.Errorf(api.Exists, "name conflicts with an existing object: %s %s already exists", k, nameOf(other))
		}
	}
	return nil
}

// clone makes a shallow copy, for its Meta to be set.
func clone(o any) any {
	switch o := o.(type) {
	case *api.Cluster:
		c := *o
		return &c
	case *api.Node:
		c := *o
		return &c
	case *api.Service:
		c := *o
		return &c
	case *api.Task:
		c := *o
		return &c
	case *api.Network:
		c := *o
		return &c
	case *api.Secret:
		c := *o
		return &c
	case *api.Config:
		c := *o
		return &c
	}
	return nil
}
