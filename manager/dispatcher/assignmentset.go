package dispatcher

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// assignmentSet is what a node has been sent: its tasks, and the secrets and
// configs that those which have not ended refer to. It computes what to send
// next; it has no goroutine and no clock.
type assignmentSet struct {
	node  string
	specs *specCache
	tasks map[string]sent
	users map[reference]map[string]struct{} // ids of tasks by what they use
}

// sent is what a node knows of a task. It does not refer to the task itself: that
// changes with each step, and all nodes together have a million.
type sent struct {
	desired swarm.TaskState
	version uint64
	spec    *api.TaskSpec
	given   *given // nil: nothing
}

// given is what managers gave a task, beside its node.
type given struct {
	networks  []api.NetworkAttachment
	ports     []swarm.PortConfig
	resources []swarm.GenericResource
	volumes   []swarm.VolumeAttachment
}

func sentOf(t *api.Task) sent {
	s := sent{desired: t.DesiredState, version: t.SpecVersion, spec: t.Spec}
	if len(t.Networks)+len(t.Ports)+len(t.GenericResources)+len(t.Volumes) > 0 {
		s.given = &given{t.Networks, t.Ports, t.GenericResources, t.Volumes}
	}
	return s
}

// reference names a secret or a config.
type reference struct {
	kind store.Kind
	id   string
}

func newAssignmentSet(node string, specs *specCache) *assignmentSet {
	return &assignmentSet{node: node, specs: specs, tasks: map[string]sent{}, users: map[reference]map[string]struct{}{}}
}

// update compares the tasks with these ids, or all of the node's, with what was
// sent, and returns the difference: what tasks refer to before the tasks, what
// is removed last.
func (a *assignmentSet) update(view *store.View, all bool, ids map[string]struct{}) []*swarmpb.AssignmentChange {
	if all {
		ids = map[string]struct{}{}
		for id := range a.tasks {
			ids[id] = struct{}{}
		}
		for t := range store.List[*api.Task](view, store.ByNode(a.node)) {
			ids[t.ID] = struct{}{}
		}
	}
	c := changes{view: view}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		a.compare(&c, id, store.Get[*api.Task](view, id))
	}
	// Only now, so that what one task lets go and another takes up stays.
	for _, e := range c.ended {
		a.release(&c, e)
	}
	return slices.Concat(c.needs, c.tasks, c.gone)
}

type changes struct {
	view               *store.View
	needs, tasks, gone []*swarmpb.AssignmentChange
	ended              []user // those that need nothing any more
}

// user is a task that may use secrets and configs.
type user struct {
	task string
	spec *api.TaskSpec
}

func (a *assignmentSet) compare(c *changes, id string, t *api.Task) {
	old, known := a.tasks[id]
	if t == nil || t.NodeID != a.node || t.Status.State == swarm.TaskStateOrphaned { // given up: what runs of it is to end
		if known {
			delete(a.tasks, id)
			c.gone = append(c.gone, &swarmpb.AssignmentChange{
				Action:     swarmpb.AssignmentChange_REMOVE,
				Assignment: &swarmpb.Assignment{Item: &swarmpb.Assignment_Task{Task: &swarmpb.Task{Id: id}}},
			})
			c.ended = append(c.ended, user{id, old.spec})
		}
		return
	}
	if api.Rank(t.Status.State) < api.Rank(swarm.TaskStateAssigned) || t.Attachment() {
		return // what a node attached itself is nothing for it to run
	}
	is := sentOf(t)
	a.tasks[t.ID] = is
	switch {
	case api.Final(t.Status.State):
		if known {
			c.ended = append(c.ended, user{id, t.Spec})
		}
	case !known:
		a.need(c, user{id, t.Spec})
	}
	if known && sameForNode(old, is) {
		return
	}
	find := func(id string) *api.Network { return store.Get[*api.Network](c.view, id) }
	m := swarmpb.NewTask(t, a.specs.get(t.Spec), find)
	if s := store.Get[*api.Service](c.view, t.ServiceID); s != nil {
		m.SetVirtualIPs(s.Endpoint.VirtualIPs)
	}
	c.tasks = append(c.tasks, &swarmpb.AssignmentChange{Assignment: &swarmpb.Assignment{Item: &swarmpb.Assignment_Task{Task: m}}})
}

// sameForNode reports whether the node would see no difference: it knows the
// status better.
func sameForNode(a, b sent) bool {
	return a.desired == b.desired && a.version == b.version && (a.spec == b.spec || reflect.DeepEqual(a.spec, b.spec)) &&
		(a.given == b.given || reflect.DeepEqual(a.given, b.given))
}

// references lists what a task of this spec uses.
func references(spec *api.TaskSpec) []reference {
	if spec == nil || spec.ContainerSpec == nil {
		return nil
	}
	var all []reference
	for _, r := range spec.ContainerSpec.Secrets {
		all = append(all, reference{store.KindSecret, r.SecretID})
	}
	for _, r := range spec.ContainerSpec.Configs {
		all = append(all, reference{store.KindConfig, r.ConfigID})
	}
	slices.SortFunc(all, func(a, b reference) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.id, b.id)) })
	return slices.Compact(all)
}

func (a *assignmentSet) need(c *changes, u user) {
	for _, r := range references(u.spec) {
		users := a.users[r]
		if users == nil {
			item := r.assignment(c.view)
			if item == nil {
				continue // removed meanwhile: the node will say so of the task
			}
			c.needs = append(c.needs, &swarmpb.AssignmentChange{Assignment: item})
			users = map[string]struct{}{}
			a.users[r] = users
		}
		users[u.task] = struct{}{}
	}
}

func (a *assignmentSet) release(c *changes, u user) {
	for _, r := range references(u.spec) {
		users := a.users[r]
		if _, ok := users[u.task]; !ok {
			continue
		}
		delete(users, u.task)
		if len(users) > 0 {
			continue
		}
		delete(a.users, r)
		c.gone = append(c.gone, &swarmpb.AssignmentChange{Action: swarmpb.AssignmentChange_REMOVE, Assignment: r.bare()})
	}
}

// assignment returns the secret or config itself; nil when there is none.
func (r reference) assignment(view *store.View) *swarmpb.Assignment {
	if r.kind == store.KindSecret {
		if s := store.Get[*api.Secret](view, r.id); s != nil {
			return &swarmpb.Assignment{Item: &swarmpb.Assignment_Secret{Secret: swarmpb.NewSecret(s)}}
		}
		return nil
	}
	if s := store.Get[*api.Config](view, r.id); s != nil {
		return &swarmpb.Assignment{Item: &swarmpb.Assignment_Config{Config: swarmpb.NewConfig(s)}}
	}
	return nil
}

// bare returns only the id, to remove it.
func (r reference) bare() *swarmpb.Assignment {
	if r.kind == store.KindSecret {
		return &swarmpb.Assignment{Item: &swarmpb.Assignment_Secret{Secret: &swarmpb.Secret{Id: r.id}}}
	}
	return &swarmpb.Assignment{Item: &swarmpb.Assignment_Config{Config: &swarmpb.Config{Id: r.id}}}
}
