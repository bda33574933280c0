package store

import (
	"iter"
	"math"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// specRow is a spec that tasks share. It is there as long as a task has it.
type specRow struct {
	key     string // specKey of the tasks
	service string // "": key is the id of the only task
	spec    *api.TaskSpec
}

func newSpecRow(t *api.Task, spec *api.TaskSpec) *specRow {
	return &specRow{key: specKey(t), service: t.ServiceID, spec: spec}
}

// pairTree is an index.
type pairTree = tree[pairKey, pairKey]

// tables is all that there is. To copy it is to take a snapshot.
//
// Only rows and specs refer to objects; the others have ids. So a write changes
// the rows, and of the others those whose keys change: with a task's status,
// none.
type tables struct {
	tasks tree[taskID, taskItem]
	rows  [kinds + 1]tree[idKey, rowItem] // all but tasks
	specs tree[idKey, *specRow]           // that tasks share, by key

	names [kinds + 1]pairTree    // folded name, id; no tasks
	uses  [2][usedKinds]pairTree // what specs refer to: the target's id, then the user's

	// Of tasks, by node, and by service and slot.
	byNode    groups
	nodes     tree[taskID, taskID]
	byService groups
	slots     tree[slotID, slotID]
}

// What uses is about.
const (
	byServices = iota // the users are services, by id
	bySpecs           // the users are specs, by key
)

const (
	usesNetwork = iota
	usesSecret
	usesConfig
	usedKinds
)

func (t *tables) get(k Kind, id string) any {
	if k == KindTask {
		if key, ok := taskIDOf(id); ok {
			return t.task(key)
		}
		return nil
	}
	it, _ := t.rows[k].get(keyOf(id))
	return it.object
}

// task returns a task, whatever group the key has, or nil.
func (t *tables) task(k taskID) any {
	if it, ok := t.tasks.get(k.in(0)); ok {
		return it.task
	}
	return nil
}

// count returns how many objects there are.
func (t *tables) count(k Kind) int {
	if k == KindTask {
		return t.tasks.size
	}
	return t.rows[k].size
}

// put adds an object, or replaces the one with its id, which it returns.
func (t *tables) put(e edit, k Kind, id string, o any) (old any) {
	if task, ok := o.(*api.Task); ok {
		key, _ := taskIDOf(id) // short enough, or nobody would have made it
		was, there := t.tasks.set(e, key, taskItem{key.a, task})
		t.indexTask(e, was.task, task)
		if !there {
			return nil
		}
		return was.task
	}
	key := keyOf(id)
	was, _ := t.rows[k].set(e, key, rowItem{key.head, o})
	old = was.object
	if s, ok := o.(*api.Service); ok {
		if was, ok := old.(*api.Service); ok {
			t.indexUses(e, byServices, id, &was.Spec.TaskTemplate, false)
		}
		t.indexUses(e, byServices, id, &s.Spec.TaskTemplate, true)
	}
	t.indexName(e, k, id, nameOf(old), nameOf(o))
	return old
}

// remove deletes an object and returns it, or nil.
func (t *tables) remove(e edit, k Kind, id string) (old any) {
	if k == KindTask {
		key, ok := taskIDOf(id)
		if !ok {
			return nil
		}
		was, ok := t.tasks.remove(e, key)
		if !ok {
			return nil
		}
		t.indexTask(e, was.task, nil)
		return was.task
	}
	was, ok := t.rows[k].remove(e, keyOf(id))
	if !ok {
		return nil
	}
	if s, ok := was.object.(*api.Service); ok {
		t.indexUses(e, byServices, id, &s.Spec.TaskTemplate, false)
	}
	t.indexName(e, k, id, nameOf(was.object), "")
	return was.object
}

func (t *tables) indexName(e edit, k Kind, id, was, is string) {
	if was == is {
		return
	}
	if was != "" {
		t.names[k].remove(e, pairKey{fold(was), id})
	}
	if is != "" {
		key := pairKey{fold(is), id}
		t.names[k].set(e, key, key)
	}
}

// indexTask moves a task in the indices from where it was to where it is; nil:
// nowhere.
func (t *tables) indexTask(e edit, was, is *api.Task) {
	if was != nil && is != nil && was.NodeID == is.NodeID && was.ServiceID == is.ServiceID && was.Slot == is.Slot {
		return
	}
	if was != nil && (is == nil || was.NodeID != is.NodeID) && was.NodeID != "" {
		t.leaveNode(e, was)
	}
	if is != nil && (was == nil || was.NodeID != is.NodeID) && is.NodeID != "" {
		key, _ := taskIDOf(is.ID)
		key = key.in(t.byNode.open(e, is.NodeID))
		t.nodes.set(e, key, key)
	}
	if was != nil && is != nil && was.ServiceID == is.ServiceID && was.Slot == is.Slot {
		return
	}
	if is != nil {
		id, _ := taskIDOf(is.ID)
		key := slotID{id.in(t.byService.open(e, is.ServiceID)), is.Slot}
		t.slots.set(e, key, key)
	}
	if was != nil {
		t.leaveSlot(e, was)
	}
}

func (t *tables) leaveNode(e edit, was *api.Task) {
	key, _ := taskIDOf(was.ID)
	group := t.byNode.of(was.NodeID)
	t.nodes.remove(e, key.in(group))
	for left := range t.nodes.from(taskID{}.in(group)) {
		if left.group() == group {
			return
		}
		break
	}
	t.byNode.close(e, was.NodeID)
}

func (t *tables) leaveSlot(e edit, was *api.Task) {
	key, _ := taskIDOf(was.ID)
	group := t.byService.of(was.ServiceID)
	t.slots.remove(e, slotID{key.in(group), was.Slot})
	for left := range t.slots.from(slotID{taskID{}.in(group), math.MinInt}) {
		if left.group() == group {
			return
		}
		break
	}
	t.byService.close(e, was.ServiceID)
}

func (t *tables) spec(key string) *specRow {
	row, _ := t.specs.get(keyOf(key))
	return row
}

func (t *tables) putSpec(e edit, row *specRow) {
	t.specs.set(e, keyOf(row.key), row)
	t.indexUses(e, bySpecs, row.key, &row.spec.TaskSpec, true)
}

func (t *tables) removeSpec(e edit, key string) {
	if row, ok := t.specs.remove(e, keyOf(key)); ok {
		t.indexUses(e, bySpecs, key, &row.spec.TaskSpec, false)
	}
}

// indexUses adds or removes what a spec refers to.
func (t *tables) indexUses(e edit, user int, id string, spec *swarm.TaskSpec, add bool) {
	for used, target := range targets(spec) {
		if key := (pairKey{target, id}); add {
			t.uses[user][used].set(e, key, key)
		} else {
			t.uses[user][used].remove(e, key)
		}
	}
}

// targets gives the ids of what a spec refers to.
func targets(spec *swarm.TaskSpec) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		give := func(used int, id string) bool { return id == "" || yield(used, id) }
		for _, n := range spec.Networks {
			if !give(usesNetwork, n.Target) {
				return
			}
		}
		c := spec.ContainerSpec
		if c == nil {
			return
		}
		for _, s := range c.Secrets {
			if s != nil && !give(usesSecret, s.SecretID) {
				return
			}
		}
		for _, s := range c.Configs {
			if s != nil && !give(usesConfig, s.ConfigID) {
				return
			}
		}
	}
}

// By selects objects in List and Count.
type By struct {
	// all iterates over ids or, where that is what it has, objects.
	index func(t *tables, k Kind) iter.Seq[any]
	key   string
}

// ByName selects by name, whatever its case (nodes: by host name).
func ByName(name string) By {
	name = fold(name)
	return By{key: name, index: func(t *tables, k Kind) iter.Seq[any] {
		return t.paired(&t.names[k], k, name, func(of string) bool { return of == name })
	}}
}

// ByNamePrefix selects by the beginning of the name, whatever its case.
func ByNamePrefix(p string) By {
	p = fold(p)
	return By{key: p, index: func(t *tables, k Kind) iter.Seq[any] {
		return t.paired(&t.names[k], k, p, func(of string) bool { return strings.HasPrefix(of, p) })
	}}
}

// ByIDPrefix selects by the beginning of the id.
func ByIDPrefix(p string) By {
	return By{key: p, index: func(t *tables, k Kind) iter.Seq[any] {
		return func(yield func(any) bool) {
			if k == KindTask {
				first, ok := taskIDOf(p)
				if !ok {
					return
				}
				for it := range t.tasks.from(first) {
					if !strings.HasPrefix(it.task.ID, p) || !yield(it.task) {
						return
					}
				}
				return
			}
			for it := range t.rows[k].from(keyOf(p)) {
				if !strings.HasPrefix(idOf(it.object), p) || !yield(it.object) {
					return
				}
			}
		}
	}}
}

// ByService selects a service's tasks, in the order of slots.
func ByService(id string) By { return bySlots(id, math.MinInt, math.MaxInt) }

// BySlot selects the tasks of a service's slot.
func BySlot(service string, slot int) By { return bySlots(service, slot, slot) }

func bySlots(service string, lo, hi int) By {
	return By{key: service, index: func(t *tables, k Kind) iter.Seq[any] {
		return func(yield func(any) bool) {
			if k != KindTask {
				return
			}
			group := t.byService.of(service)
			if group == 0 {
				return
			}
			for key := range t.slots.from(slotID{taskID{}.in(group), lo}) {
				if key.group() != group || key.slot > hi || !yield(t.task(key.taskID)) {
					return
				}
			}
		}
	}}
}

// ByNode selects the tasks assigned to a node.
func ByNode(id string) By {
	return By{key: id, index: func(t *tables, k Kind) iter.Seq[any] {
		if k != KindTask {
			return nothing
		}
		return func(yield func(any) bool) {
			group := t.byNode.of(id)
			if group == 0 {
				return
			}
			for key := range t.nodes.from(taskID{}.in(group)) {
				if key.group() != group || !yield(t.task(key)) {
					return
				}
			}
		}
	}}
}

// ByDesiredState selects tasks. There is no index: all tasks are looked at.
func ByDesiredState(s swarm.TaskState) By {
	return scan(string(s), func(t *api.Task) bool { return t.DesiredState == s })
}

// ByTaskState selects tasks by their status. There is no index: all tasks are
// looked at.
func ByTaskState(s swarm.TaskState) By {
	return scan(string(s), func(t *api.Task) bool { return t.Status.State == s })
}

func scan(key string, match func(t *api.Task) bool) By {
	return By{key: key, index: func(t *tables, k Kind) iter.Seq[any] {
		return func(yield func(any) bool) {
			if k != KindTask {
				return
			}
			for it := range t.tasks.all() {
				if match(it.task) && !yield(it.task) {
					return
				}
			}
		}
	}}
}

// ByNetwork selects the services and tasks whose spec names a network.
func ByNetwork(id string) By { return byUse(usesNetwork, id) }

// BySecret selects the services and tasks that use a secret.
func BySecret(id string) By { return byUse(usesSecret, id) }

// ByConfig selects the services and tasks that use a config.
func ByConfig(id string) By { return byUse(usesConfig, id) }

func byUse(used int, id string) By {
	match := func(of string) bool { return of == id }
	return By{key: id, index: func(t *tables, k Kind) iter.Seq[any] {
		switch k {
		case KindService:
			return t.paired(&t.uses[byServices][used], k, id, match)
		case KindTask:
			return t.bySpec(used, id)
		}
		return nothing
	}}
}

func nothing(func(any) bool) {}

// paired gives the objects that an index has from a key on, as long as match
// likes the key.
func (t *tables) paired(index *pairTree, k Kind, from string, match func(of string) bool) iter.Seq[any] {
	return func(yield func(any) bool) {
		for key := range index.from(pairKey{of: from}) {
			if !match(key.of) || !yield(t.get(k, key.id)) {
				return
			}
		}
	}
}

// bySpec finds tasks through their specs: tasks themselves are not indexed by
// what their specs refer to.
func (t *tables) bySpec(used int, id string) iter.Seq[any] {
	return func(yield func(any) bool) {
		for key := range t.uses[bySpecs][used].from(pairKey{of: id}) {
			if key.of != id {
				return
			}
			row := t.spec(key.id)
			of := ByService(row.service)
			if row.service == "" {
				of = ByIDPrefix(row.key)
			}
			for o := range of.index(t, KindTask) {
				if o.(*api.Task).Spec == row.spec && !yield(o) {
					return
				}
			}
		}
	}
}
