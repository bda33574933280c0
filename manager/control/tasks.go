package control

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// TaskInspect returns a task, by id or unambiguous prefix.
func (c *Control) TaskInspect(_ context.Context, id string) (*swarm.Task, error) {
	view := c.cfg.Store.View()
	if dot := strings.LastIndexByte(id, '.'); dot >= 0 { // a task's name ends with its id
		if t := store.Get[*api.Task](view, id[dot+1:]); t != nil && t.Name() == id {
			id = t.ID
		}
	}
	t, err := find(view, "task", id, func(t *api.Task) string { return t.ID })
	if err != nil {
		return nil, err
	}
	out := Task(view, t)
	return &out, nil
}

// Task is how the API shows a task.
func Task(r store.Reader, t *api.Task) swarm.Task {
	out := swarm.Task{
		ID: t.ID, Meta: t.Meta, Spec: t.Spec.TaskSpec, ServiceID: t.ServiceID, Slot: t.Slot, NodeID: t.NodeID,
		Status: t.Status, DesiredState: t.DesiredState, GenericResources: t.GenericResources, JobIteration: t.JobIteration,
		Volumes: t.Volumes,
	}
	if t.Evicted != "" && out.Status.Err == "" {
		out.Status.Err = t.Evicted // the node only knows that it was told to end
	}
	if wait := backedOff(t, time.Now()); wait != "" {
		out.Status.Err = wait
	}
	out.Labels = map[string]string{}
	if out.Volumes == nil {
		out.Volumes = []swarm.VolumeAttachment{}
	}
	for _, n := range t.Networks {
		a := swarm.NetworkAttachment{Addresses: n.Addresses}
		if net := store.Get[*api.Network](r, n.NetworkID); net != nil {
			a.Network = net.Network
		} else {
			a.Network.ID = n.NetworkID
		}
		out.NetworksAttachments = append(out.NetworksAttachments, a)
	}
	return out
}

// taskFilter is a list's filters with names resolved.
type taskFilter struct {
	f               api.Filters
	services, nodes []string
	upToDates       []bool
	desired         []swarm.TaskState
	// same says, for a service and the version of its spec that a task is of,
	// whether the present spec would have the task do the same.
	same map[specVersion]bool
}

type specVersion struct {
	service string
	version uint64
}

// TaskList returns the tasks that the filters let through.
func (c *Control) TaskList(_ context.Context, f api.Filters) ([]swarm.Task, error) {
	if err := checkFilters(f, "desired-state", "id", "label", "name", "node", "service", "up-to-date", "_up-to-date", "runtime"); err != nil {
		return nil, err
	}
	view := c.cfg.Store.View()
	tf := &taskFilter{f: f, same: map[specVersion]bool{}}
	for _, d := range f["desired-state"] {
		state := swarm.TaskState(strings.ToLower(d))
		if api.Rank(state) < 0 {
			return nil, api.Errorf(api.Invalid, "invalid filter 'desired-state=%s': want running, shutdown, accepted, ready or complete", d)
		}
		tf.desired = append(tf.desired, state)
	}
	if err := tf.resolve(c, view); err != nil {
		return nil, err
	}
	out := []swarm.Task{}
	for t := range tf.candidates(view) {
		if tf.match(view, t) {
			out = append(out, Task(view, t))
		}
	}
	return out, nil
}

// resolve finds what the filters name. NotFound: a service or node that is not
// there and of which there is no task either; those that are gone may have some.
func (tf *taskFilter) resolve(c *Control, view *store.View) error {
	for _, v := range append(tf.f["up-to-date"], tf.f["_up-to-date"]...) {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return invalid("invalid filter 'up-to-date=%s': want true or false", v)
		}
		tf.upToDates = append(tf.upToDates, b)
	}
	for _, name := range tf.f["service"] {
		s, err := c.service(view, name)
		switch {
		case err == nil:
			name = s.ID
		case !api.Is(err, api.NotFound) || store.Count[*api.Task](view, store.ByService(name)) == 0:
			return err
		}
		tf.services = append(tf.services, name)
	}
	for _, name := range tf.f["node"] {
		n, err := find(view, "node", name, nodeID)
		switch {
		case err == nil:
			name = n.ID
		case !api.Is(err, api.NotFound) || store.Count[*api.Task](view, store.ByNode(name)) == 0:
			return err
		}
		tf.nodes = append(tf.nodes, name)
	}
	return nil
}

// candidates uses an index where there is one for the filters.
func (tf *taskFilter) candidates(view *store.View) func(func(*api.Task) bool) {
	switch {
	case len(tf.services) == 1:
		return store.List[*api.Task](view, store.ByService(tf.services[0]))
	case len(tf.nodes) == 1:
		return store.List[*api.Task](view, store.ByNode(tf.nodes[0]))
	}
	return store.List[*api.Task](view)
}

func (tf *taskFilter) match(view *store.View, t *api.Task) bool {
	// Those of users' own containers are shown to who asks for them.
	if t.Attachment() && !slices.Contains(tf.f["runtime"], string(swarm.RuntimeNetworkAttachment)) {
		return false
	}
	if t.DesiredState == swarm.TaskStateRemove && len(tf.f["id"]) == 0 {
		return false
	}
	return (len(tf.services) == 0 || slices.Contains(tf.services, t.ServiceID)) &&
		(len(tf.nodes) == 0 || slices.Contains(tf.nodes, t.NodeID)) &&
		anyPrefix(tf.f["id"], t.ID) &&
		(len(tf.f["name"]) == 0 || slices.ContainsFunc(tf.f["name"], func(n string) bool { return n == t.Name() || n == shortName(t) || anyPrefix([]string{n}, t.Name()) })) &&
		matchLabels(tf.f["label"], t.Spec.ServiceLabels) && tf.matchDesired(t) && tf.matchUpToDate(view, t)
}

func shortName(t *api.Task) string {
	return strings.TrimSuffix(t.Name(), "."+t.ID)
}

func (tf *taskFilter) matchDesired(t *api.Task) bool {
	if len(tf.desired) == 0 {
		return true
	}
	for _, d := range tf.desired {
		switch {
		case t.DesiredState == d, d == swarm.TaskStateShutdown && over(t):
			return true
		case d == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateComplete && !over(t): // a job's
			return true
		}
	}
	return false
}

// over reports whether a task shall not run: one of a job that has completed too.
func over(t *api.Task) bool {
	return api.ToldToEnd(t.DesiredState) || t.DesiredState == swarm.TaskStateComplete && api.Final(t.Status.State)
}

func (tf *taskFilter) matchUpToDate(view *store.View, t *api.Task) bool {
	if len(tf.upToDates) == 0 {
		return true
	}
	return slices.Contains(tf.upToDates, tf.upToDate(view, t))
}

// upToDate reports whether the orchestrator leaves the task as it is: a change of
// labels alone, say, replaces none.
func (tf *taskFilter) upToDate(view *store.View, t *api.Task) bool {
	s := store.Get[*api.Service](view, t.ServiceID)
	switch {
	case s == nil:
		return false
	case s.Job():
		return s.Iteration(t)
	case s.SpecVersion == t.SpecVersion:
		return true
	}
	key := specVersion{s.ID, t.SpecVersion}
	same, known := tf.same[key]
	if !known {
		same = t.Spec.SameRun(s.TaskSpec())
		tf.same[key] = same
	}
	n := store.Get[*api.Node](view, t.NodeID)
	if !same || n == nil || s.Spec.TaskTemplate.Placement == nil {
		return same
	}
	cs, _ := api.ParseConstraints(s.Spec.TaskTemplate.Placement.Constraints) // checked when the service was written
	return api.MatchAll(cs, n) && api.MatchPlatform(s.Spec.TaskTemplate.Placement.Platforms, n)
}
