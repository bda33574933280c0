package store

import (
	"iter"
	"time"

	"github.com/legion-swarm/legion/api"
)

// maxChange bounds what one transaction may write, in encoded bytes: an entry
// of the log is held in memory and sent to every manager as a whole.
const maxChange = 8 << 20

// Tx is a transaction under way: a snapshot with what was written on top. It
// belongs to the function that Update runs, and to one goroutine.
type Tx struct {
	store   *Store
	view    *View
	now     time.Time
	items   []touched // what was read or written, in the order of the first time
	index   map[ref]int
	written []int // items, in the order of their first write
	listed  bool  // it depends on more than its items

	// scratch is the view with the writes up to some moment, for lists; pending
	// has the items that were written since.
	scratch *tables
	edit    edit
	pending []int
	specs   map[string]*api.TaskSpec // of tasks written, that the view does not have
}

type ref struct {
	kind Kind
	id   string
}

// touched is an object that the transaction read or wrote.
type touched struct {
	ref
	before  any // in the view; nil: it is not there
	now     any // in the transaction; nil: it is not there
	written bool
}

// base is the version that the transaction depends on; 0: that it is not there.
func (t *touched) base() uint64 {
	if t.before == nil {
		return 0
	}
	return metaOf(t.before).Version.Index
}

var _ Reader = (*Tx)(nil)

func (tx *Tx) get(k Kind, id string) any { return tx.touch(k, id).now }

// touch notes that the transaction depends on an object. The result is good
// until the next call.
func (tx *Tx) touch(k Kind, id string) *touched {
	r := ref{k, id}
	i, ok := tx.index[r]
	if !ok {
		o := tx.view.get(k, id)
		i = len(tx.items)
		tx.index[r] = i
		tx.items = append(tx.items, touched{ref: r, before: o, now: o})
	}
	return &tx.items[i]
}

func (tx *Tx) list(k Kind, by By) iter.Seq[any] {
	tx.listed = true
	return func(yield func(any) bool) { by.index(tx.tables(), k)(yield) }
}

// tables returns the view with all that was written; it does not change any
// more.
func (tx *Tx) tables() *tables {
	if tx.scratch == nil {
		if len(tx.written) == 0 {
			return &tx.view.tables
		}
		t := tx.view.tables
		tx.scratch, tx.edit = &t, tx.store.newEdit()
	}
	for _, i := range tx.pending {
		tx.write(&tx.items[i])
	}
	tx.pending = tx.pending[:0]
	t := *tx.scratch
	tx.edit = tx.store.newEdit()
	return &t
}

func (tx *Tx) write(c *touched) {
	if c.now == nil {
		tx.scratch.remove(tx.edit, c.kind, c.id)
		return
	}
	if t, ok := c.now.(*api.Task); ok {
		if key := specKey(t); tx.specs[key] != nil && tx.scratch.spec(key) == nil {
			tx.scratch.putSpec(tx.edit, newSpecRow(t, t.Spec))
		}
	}
	tx.scratch.put(tx.edit, c.kind, c.id, c.now)
}

// Create adds an object. Exists if its id, or its name where names are unique,
// is taken. CreatedAt and UpdatedAt are set, but for a CreatedAt that is later than
// now, which stays: it says what the object comes after. o is not touched.
func Create[T api.Object](tx *Tx, o T) error {
	k := kindOf[T]()
	id := idOf(o)
	if id == "" {
		return api.Errorf(api.Invalid, "a %s needs an id", k)
	}
	if k == KindTask && len(id) > maxTaskID {
		return api.Errorf(api.Invalid, "task %s: an id of %d bytes; at most %d are accepted", id, len(id), maxTaskID)
	}
	if tx.get(k, id) != nil {
		return api.Errorf(api.Exists, "%s %s already exists", k, id)
	}
	if err := tx.nameFree(k, o); err != nil {
		return err
	}
	c := clone(o)
	m := metaOf(c)
	m.UpdatedAt = tx.now
	if !m.CreatedAt.After(tx.now) {
		m.CreatedAt = tx.now
	}
	noteSpec(nil, c, tx.view.Index())
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
		return outOfSequence(k, id, metaOf(old).Version.Index, metaOf(o).Version.Index)
	}
	if fold(nameOf(old)) != fold(nameOf(o)) {
		if err := tx.nameFree(k, o); err != nil {
			return err
		}
	}
	c := clone(o)
	m := metaOf(c)
	m.CreatedAt, m.UpdatedAt = metaOf(old).CreatedAt, tx.now
	noteSpec(old, c, metaOf(old).Version.Index)
	return tx.put(ref{k, id}, c)
}

// Delete removes an object. NotFound if there is none.
func Delete[T api.Object](tx *Tx, id string) error {
	k := kindOf[T]()
	if tx.get(k, id) == nil {
		return api.Errorf(api.NotFound, "%s %s not found", k, id)
	}
	tx.note(ref{k, id}, nil)
	return nil
}

func (tx *Tx) put(r ref, o any) error {
	if t, ok := o.(*api.Task); ok {
		if err := tx.shareSpec(t); err != nil {
			return err
		}
	}
	tx.note(r, o)
	return nil
}

// shareSpec does what apply will do: the first spec of its key is every task's.
func (tx *Tx) shareSpec(t *api.Task) error {
	if t.Spec == nil {
		return api.Errorf(api.Invalid, "task %s has no spec", t.ID)
	}
	if was, ok := tx.touch(KindTask, t.ID).before.(*api.Task); ok && sameSpec(was, t) {
		t.Spec = was.Spec
		return nil
	}
	key := specKey(t)
	if row := tx.view.tables.spec(key); row != nil {
		t.Spec = row.spec
		return nil
	}
	if spec := tx.specs[key]; spec != nil {
		t.Spec = spec
		return nil
	}
	if tx.specs == nil {
		tx.specs = map[string]*api.TaskSpec{}
	}
	tx.specs[key] = t.Spec
	return nil
}

// note writes; a nil object deletes.
func (tx *Tx) note(r ref, o any) {
	c := tx.touch(r.kind, r.id)
	i := tx.index[r]
	c.now = o
	if !c.written {
		c.written = true
		tx.written = append(tx.written, i)
	}
	tx.pending = append(tx.pending, i)
}

// nameFree reports Exists if another object of the kind has o's name.
func (tx *Tx) nameFree(k Kind, o any) error {
	if !k.named() {
		return nil
	}
	return nameFree(tx.tables(), k, o)
}

func nameFree(t *tables, k Kind, o any) error {
	for other := range ByName(nameOf(o)).index(t, k) {
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
	case *api.ServiceVersion:
		c := *o
		return &c
	}
	return nil
}
