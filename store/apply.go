package store

import (
	"errors"
	"fmt"

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
	a := applier{store: s, tables: s.View().tables, edit: s.newEdit(), index: index, specs: map[string][]byte{}, refs: map[string]int{}}
	for _, r := range e.reads {
		var v uint64
		if o := a.tables.get(r.kind, r.id); o != nil {
			v = metaOf(o).Version.Index
		}
		if v != r.version {
			s.publish(&View{tables: a.tables, index: index}, nil)
			return errStale, nil
		}
	}
	before := a.tables
	a.changes = make([]Change, 0, len(e.ops))
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
		s.publish(&View{tables: before, index: index}, nil)
		return result, nil
	}
	for key, n := range a.refs {
		if s.refs[key] += n; s.refs[key] == 0 {
			delete(s.refs, key)
		}
	}
	s.publish(&View{tables: a.tables, index: index}, a.changes)
	return nil, nil
}

// newEdit returns a number that was not used yet in this store.
func (s *Store) newEdit() edit { return edit(s.edits.Add(1)) }

// publish makes the newest view and tells watchers. Callers hold mu.
func (s *Store) publish(v *View, changes []Change) {
	s.view.Store(v)
	if len(changes) == 0 {
		return
	}
	for w := range s.watchers {
		w.add(v, changes)
	}
}

// applier takes one entry's operations, into a copy of the tables.
type applier struct {
	store   *Store
	tables  tables
	edit    edit
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
		old := a.tables.remove(a.edit, o.kind, o.id)
		if old == nil {
			return errStale, nil
		}
		if t, ok := old.(*api.Task); ok {
			a.refs[specKey(t)]--
		}
		a.changes = append(a.changes, Change{Kind: o.kind, ID: o.id, Old: old, Index: a.index})
		return nil, nil
	}
	return a.put(o)
}

func (a *applier) put(o *op) (result, fatal error) {
	obj, err := decodeObject(o.kind, o.body, &a.store.intern)
	if err != nil {
		return nil, err
	}
	metaOf(obj).Version.Index = a.index
	id := idOf(obj)
	old := a.tables.put(a.edit, o.kind, id, obj)
	a.changes = append(a.changes, Change{Kind: o.kind, ID: id, Old: old, New: obj, Index: a.index})
	t, ok := obj.(*api.Task)
	if !ok {
		return nil, nil
	}
	switch err := a.giveSpec(t, old); {
	case errors.Is(err, errStale):
		return err, nil
	default:
		return nil, err
	}
}

// giveSpec gives a task the spec that it shares: what the store has comes
// first, then what came with the entry. Nobody sees the task yet.
func (a *applier) giveSpec(t *api.Task, old any) error {
	was, _ := old.(*api.Task)
	if was != nil {
		if t.Status.ContainerStatus == nil { // else it has the id with the container's
			t.ID = was.ID // the same string, in memory that is there
		}
		if sameSpec(was, t) {
			t.Spec = was.Spec
			return nil
		}
		a.refs[specKey(was)]--
	}
	key := specKey(t)
	a.refs[key]++
	if row := a.tables.spec(key); row != nil {
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
	a.tables.putSpec(a.edit, newSpecRow(t, spec))
	return nil
}

// finish checks what only the whole change can be checked for, and drops specs
// that no task has any more.
func (a *applier) finish() (result, fatal error) {
	for i := range a.changes {
		if n, ok := a.changes[i].Old.(*api.Network); ok && a.changes[i].New == nil && inUse(&a.tables, n) {
			return errStale, nil
		}
		if n, ok := a.changes[i].Old.(*api.Node); ok && a.changes[i].New == nil && hasContainers(&a.tables, n) {
			return errStale, nil
		}
		if c := &a.changes[i]; c.New != nil && c.Kind.named() {
			if err := nameFree(&a.tables, c.Kind, c.New); err != nil {
				return err, nil
			}
			if n, ok := c.New.(*api.Network); ok && clashes(&a.tables, n) {
				return errStale, nil
			}
			if s, ok := c.New.(*api.Service); ok && portTaken(&a.tables, c.Old, s) {
				return errStale, nil
			}
		}
	}
	for key, n := range a.refs {
		if n < 0 && a.store.refs[key]+n == 0 {
			a.tables.removeSpec(a.edit, key)
		}
	}
	return nil, nil
}

// clashes reports whether another network has what n was given. Whoever chose it
// did not see that one: two managers may choose at the same time.
func clashes(t *tables, n *api.Network) bool {
	for o := range ByIDPrefix("").index(t, KindNetwork) {
		if other, ok := o.(*api.Network); ok && other.ID != n.ID && n.Clashes(other) {
			return true
		}
	}
	return false
}
