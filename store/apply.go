package store

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/legion-swarm/legion/api"
)

// errStale refuses an entry because what it read has changed since.
var errStale = errors.New("store: the objects changed meanwhile")

// Apply takes an entry of the log. It is called in the log's order, on every
// manager, and depends on nothing but the entry and the store. result is for
// whoever proposed the entry: nil if it was taken, else nothing was changed.
// fatal means that the entry can't be understood: the caller must halt, since
// to go on would make managers differ.
func (s *Store) Apply(index uint64, data []byte) (result, fatal error) {
	e, err := decodeEntry(data)
	if err != nil {
		return nil, fmt.Errorf("entry %d: %w", index, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	txn := s.db.Txn(true)
	defer txn.Abort() // no effect after Commit
	for _, r := range e.reads {
		var v uint64
		if o := first(txn, r.kind, r.id); o != nil {
			v = metaOf(o).Version.Index
		}
		if v != r.version {
			s.publish(index, nil)
			return errStale, nil
		}
	}
	a := applier{store: s, txn: txn, index: index, specs: map[string][]byte{}, refs: map[string]int{}}
	for i := range e.ops {
		if result, err = a.apply(&e.ops[i]); result != nil || err != nil {
			break
		}
	}
	if result == nil && err == nil {
		result, err = a.finish()
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("entry %d: %w", index, err)
	case result != nil:
		s.publish(index, nil)
		return result, nil
	}
	txn.Commit()
	for key, n := range a.refs {
		if s.refs[key] += n; s.refs[key] == 0 {
			delete(s.refs, key)
		}
	}
	s.publish(index, a.changes)
	return nil, nil
}

// publish makes the newest view and tells watchers. Callers hold mu.
func (s *Store) publish(index uint64, changes []Change) {
	counts := s.View().counts
	for i := range changes {
		switch c := &changes[i]; {
		case c.Old == nil:
			counts[c.Kind]++
		case c.New == nil:
			counts[c.Kind]--
		}
	}
	s.view.Store(newView(s.db, index, counts))
	if len(changes) == 0 {
		return
	}
	for w := range s.watchers {
		w.add(changes)
	}
}

// applier takes one entry's operations.
type applier struct {
	store   *Store
	txn     *memdb.Txn
	index   uint64
	specs   map[string][]byte // that came with the entry, not decoded yet
	refs    map[string]int    // by how much the number of tasks with a spec changes
	changes []Change
}

func (a *applier) apply(o *op) (result, fatal error) {
	switch o.code {
	case opSpec:
		a.specs[o.id] = o.body
		return nil, nil
	case opDelete:
		old := first(a.txn, o.kind, o.id)
		if old == nil {
			return errStale, nil
		}
		if err := a.txn.Delete(o.kind.String(), old); err != nil {
			return nil, err
		}
		a.changed(Change{Kind: o.kind, ID: o.id, Old: old, Index: a.index})
		return nil, nil
	}
	return a.put(o)
}

func (a *applier) changed(c Change) {
	a.changes = append(a.changes, c)
	if t, ok := c.New.(*api.Task); ok {
		a.refs[specKey(t)]++
	}
	if t, ok := c.Old.(*api.Task); ok {
		a.refs[specKey(t)]--
	}
}

func (a *applier) put(o *op) (result, fatal error) {
	obj, err := decodeObject(o.kind, o.body, &a.store.intern)
	if err != nil {
		return nil, err
	}
	if t, ok := obj.(*api.Task); ok {
		if err := a.giveSpec(t); err != nil {
			if errors.Is(err, errStale) {
				return err, nil
			}
			return nil, err
		}
	}
	metaOf(obj).Version.Index = a.index
	id := idOf(obj)
	old := first(a.txn, o.kind, id)
	if err := a.txn.Insert(o.kind.String(), obj); err != nil {
		return nil, err
	}
	a.changed(Change{Kind: o.kind, ID: id, Old: old, New: obj, Index: a.index})
	return nil, nil
}

// giveSpec gives a task the spec that it shares: what the store has comes
// first, then what came with the entry.
func (a *applier) giveSpec(t *api.Task) error {
	key := specKey(t)
	if row := specOf(a.txn, key); row != nil {
		t.Spec = row.spec
		return nil
	}
	body, ok := a.specs[key]
	if !ok {
		return errStale // it was dropped while the entry was on its way
	}
	spec, err := decodeSpec(key, body)
	if err != nil {
		return err
	}
	t.Spec = spec
	return a.txn.Insert(tableSpec, newSpecRow(t, spec))
}

// finish checks what only the whole change can be checked for, and drops specs
// that no task has any more.
func (a *applier) finish() (result, fatal error) {
	for i := range a.changes {
		if c := &a.changes[i]; c.New != nil && c.Kind.named() {
			if err := nameFree(a.txn, c.Kind, c.New); err != nil {
				return err, nil
			}
			if n, ok := c.New.(*api.Network); ok && clashes(a.txn, n) {
				return errStale, nil
			}
		}
	}
	for key, n := range a.refs {
		if n < 0 && a.store.refs[key]+n == 0 {
			if err := a.txn.Delete(tableSpec, specOf(a.txn, key)); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// clashes reports whether another network has what n was given. Whoever chose it
// did not see that one: two managers may choose at the same time.
func clashes(txn *memdb.Txn, n *api.Network) bool {
	for o := range all(txn, KindNetwork, ByIDPrefix("")) {
		if other, ok := o.(*api.Network); ok && other.ID != n.ID && n.Clashes(other) {
			return true
		}
	}
	return false
}
