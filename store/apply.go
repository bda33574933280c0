package store

import (
	"encoding/json"
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
	a := applier{store: s, txn: txn, index: index, specs: map[string]*api.TaskSpec{}}
	for i := range e.ops {
		if result, fatal = a.apply(&e.ops[i]); result != nil || fatal != nil {
			if fatal == nil {
				s.publish(index, nil)
				return result, nil
			}
			return nil, fmt.Errorf("entry %d: %w", index, fatal)
		}
	}
	txn.Commit()
	a.countSpecs()
	s.publish(index, a.changes)
	return nil, nil
}

// publish makes the newest view and tells watchers. Callers hold mu.
func (s *Store) publish(index uint64, changes []Change) {
	s.view.Store(newView(s.db, index))
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
	specs   map[string]*api.TaskSpec // that came with the entry
	changes []Change
}

func (a *applier) apply(o *op) (result, fatal error) {
	switch o.code {
	case opSpec:
		spec := new(api.TaskSpec)
		if err := json.Unmarshal(o.body, spec); err != nil {
			return nil, fmt.Errorf("%w: spec %s: %w", errMalformed, o.id, err)
		}
		a.specs[o.id] = spec
		return nil, nil
	case opDelete:
		old := first(a.txn, o.kind, o.id)
		if old == nil {
			return errStale, nil
		}
		if err := a.txn.Delete(o.kind.String(), old); err != nil {
			return nil, err
		}
		a.changes = append(a.changes, Change{Kind: o.kind, ID: o.id, Old: old, Index: a.index})
		return nil, nil
	}
	return a.put(o)
}

func (a *applier) put(o *op) (result, fatal error) {
	obj, err := decodeObject(o.kind, o.body)
	if err != nil {
		return nil, err
	}
	if t, ok := obj.(*api.Task); ok {
		if t.Spec = a.spec(specKey(t)); t.Spec == nil {
			return errStale, nil
		}
	}
	if o.kind.named() {
		if err := nameFree(a.txn, o.kind, obj); err != nil {
			return err, nil
		}
	}
	metaOf(obj).Version.Index = a.index
	id := idOf(obj)
	old := first(a.txn, o.kind, id)
	if err := a.txn.Insert(o.kind.String(), obj); err != nil {
		return nil, err
	}
	a.changes = append(a.changes, Change{Kind: o.kind, ID: id, Old: old, New: obj, Index: a.index})
	return nil, nil
}

// spec finds the spec that tasks share: what the store has comes first.
func (a *applier) spec(key string) *api.TaskSpec {
	if e := a.store.specs[key]; e != nil {
		return e.spec
	}
	return a.specs[key]
}

// countSpecs keeps count of the tasks that share a spec, and drops specs that
// none does any more.
func (a *applier) countSpecs() {
	for i := range a.changes {
		c := &a.changes[i]
		if c.Kind != KindTask {
			continue
		}
		if t, ok := c.New.(*api.Task); ok {
			a.store.hold(specKey(t), t.Spec)
		}
		if t, ok := c.Old.(*api.Task); ok {
			a.store.release(specKey(t))
		}
	}
}

func (s *Store) hold(key string, spec *api.TaskSpec) {
	e := s.specs[key]
	if e == nil {
		e = &specEntry{spec: spec}
		s.specs[key] = e
	}
	e.refs++
}

func (s *Store) release(key string) {
	if e := s.specs[key]; e != nil {
		if e.refs--; e.refs == 0 {
			delete(s.specs, key)
		}
	}
}
