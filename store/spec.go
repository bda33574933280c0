package store

import (
	"reflect"

	"github.com/legion-swarm/legion/api"
)

// specOf is what users write of objects to which managers write the rest, and the
// version since which it is what it is; nil for objects of other kinds.
func specOf(o any) (spec any, from *uint64) {
	switch o := o.(type) {
	case *api.Node:
		return &o.Spec, &o.SpecFrom
	case *api.Service:
		return &o.Spec, &o.SpecFrom
	}
	return nil, nil
}

// noteSpec has an object remember since when its spec is what it is. old is nil for
// one that is new; all versions it will have are later than last.
func noteSpec(old, o any, last uint64) {
	spec, from := specOf(o)
	if spec == nil {
		return
	}
	if old != nil {
		was, since := specOf(old)
		if reflect.DeepEqual(was, spec) {
			*from = *since
			return
		}
	}
	*from = last + 1
}

// Saw returns nil if whoever saw a version of the node or service saw the spec that it
// has now: what managers wrote since, such as how an update gets on or whether a node is
// there, is not lost when that spec is replaced. Else OutOfSequence.
func Saw[T api.Object](o T, version uint64) error {
	now := metaOf(o).Version.Index
	if _, from := specOf(o); from != nil && *from != 0 && *from <= version && version <= now || version == now {
		return nil
	}
	return outOfSequence(kindOf[T](), idOf(o), now, version)
}

func outOfSequence(k Kind, id string, now, version uint64) error {
	return api.Errorf(api.OutOfSequence, "update out of sequence: %s %s has version %d, not %d", k, id, now, version)
}
