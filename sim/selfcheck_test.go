package sim

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/store"
)

// TestUndone: what the leader's loops would do now, or soon without being
// asked, is not done; what waits for users, or for room that nobody will give, is.
func TestUndone(t *testing.T) {
	canary := func(promote api.Promotion) func(tx *quietSwarm) {
		return func(q *quietSwarm) {
			q.service.Spec.Labels = map[string]string{canaryLabel: "1", api.PolicyPrefix + "update.promote": string(promote)}
			q.service.SpecVersion = 2
			q.service.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: new(q.now.Add(-time.Second))}
			q.task("new", 1, 2, swarm.TaskStateRunning)
			q.task("old", 2, 1, swarm.TaskStateRunning)
		}
	}
	for name, c := range map[string]struct {
		make func(q *quietSwarm)
		want string // "": all is done
	}{
		"all run": {func(q *quietSwarm) {
			q.task("a", 1, 1, swarm.TaskStateRunning)
			q.task("b", 2, 1, swarm.TaskStateRunning)
		}, ""},
		"a task is missing":                {func(q *quietSwarm) { q.task("a", 1, 1, swarm.TaskStateRunning) }, "has not made 1 tasks"},
		"canaries that a user promotes":    {canary(api.PromoteManual), ""},
		"canaries that promote themselves": {canary(api.PromoteHealth), "it goes on if they still do after"},
		"canaries that a user has promoted": {func(q *quietSwarm) {
			canary(api.PromoteManual)(q)
			q.service.Promoted = 2
			q.tasks[1].Status.State, q.tasks[1].DesiredState = swarm.TaskStateShutdown, swarm.TaskStateShutdown
			q.task("newer", 2, 2, swarm.TaskStateRunning).CreatedAt = q.now.Add(1)
		}, "update in progress"},
		"a move that finds no room is given up": {func(q *quietSwarm) {
			q.service.Spec.Labels = map[string]string{api.RebalanceLabel: "true"}
			q.service.Spec.UpdateConfig.Order = swarm.UpdateOrderStartFirst
			q.service.Spec.TaskTemplate.Placement = &swarm.Placement{MaxReplicas: 2}
			q.task("a", 1, 1, swarm.TaskStateRunning)
			q.task("b", 2, 1, swarm.TaskStateRunning)
			moved := q.task("c", 2, 1, swarm.TaskStatePending)
			moved.NodeID, moved.MovedFrom, moved.Status.Err = "", "n", "no suitable node"
			moved.CreatedAt = q.now.Add(time.Second)
		}, "will look again in 1m"},
		"a slot is waited for, and the leader's clock is behind": {func(q *quietSwarm) {
			q.behind = 900 * time.Millisecond
			q.service.SpecVersion = 2
			q.service.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: new(q.now.Add(-time.Second))}
			q.service.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "gone"}}
			q.task("old", 1, 1, swarm.TaskStateShutdown).DesiredState = swarm.TaskStateShutdown
			waits := q.task("new", 1, 2, swarm.TaskStateNew)
			waits.NodeID, waits.Status.Err, waits.CreatedAt = "", "there is no such network", q.now.Add(1)
			q.task("b", 2, 2, swarm.TaskStateRunning)
		}, "will look again in 1m0.9"},
		"tasks of a service that was removed": {func(q *quietSwarm) {
			q.task("a", 1, 1, swarm.TaskStateRunning)
			q.task("b", 2, 1, swarm.TaskStateRunning)
			left := q.task("c", 1, 1, swarm.TaskStateShutdown)
			left.ServiceID, left.DesiredState = "none", swarm.TaskStateRemove
		}, "which was removed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQuietSwarm(t)
				c.make(q)
				got := undone(q.view(), q.now.Add(-q.behind), ahead)
				if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
					t.Errorf("%q is undone, not %q", got, c.want)
				}
			})
		})
	}
}

// quietSwarm is a node with a service of two replicas, as a manager has them.
type quietSwarm struct {
	t       *testing.T
	now     time.Time
	behind  time.Duration // is the leader's clock
	node    *api.Node
	service *api.Service
	tasks   []*api.Task
}

func newQuietSwarm(t *testing.T) *quietSwarm {
	q := &quietSwarm{t: t, now: time.Now().UTC(), node: &api.Node{}, service: &api.Service{SpecVersion: 1}}
	q.node.ID, q.node.Status.State, q.node.Spec.Availability = "n", swarm.NodeStateReady, swarm.NodeAvailabilityActive
	q.service.ID, q.service.Spec = "s", *spec("s", 2)
	q.service.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Monitor: time.Second}
	return q
}

// task adds one of a version, which differs from all others, on the node.
func (q *quietSwarm) task(id string, slot int, version uint64, state swarm.TaskState) *api.Task {
	s := *q.service
	c := *s.Spec.TaskTemplate.ContainerSpec
	s.Spec.TaskTemplate.ContainerSpec = &c
	if version != q.service.SpecVersion {
		c.Image = "another"
	}
	t := &api.Task{
		ID: id, ServiceID: "s", Slot: slot, NodeID: "n", SpecVersion: version, Spec: s.TaskSpec(), DesiredState: swarm.TaskStateRunning,
		Status: swarm.TaskStatus{State: state, Timestamp: q.now},
	}
	t.CreatedAt, t.UpdatedAt = q.now, q.now
	q.tasks = append(q.tasks, t)
	return t
}

// view is the store once the loops that need no time have done what they do.
func (q *quietSwarm) view() *store.View {
	st, err := store.NewLocal(store.Config{})
	if err != nil {
		q.t.Fatal(err)
	}
	in := orchestrator.Input{Service: q.service, Tasks: q.tasks, Nodes: map[string]*api.Node{"n": q.node}, Now: q.now, NewID: api.NewID}
	if out := orchestrator.Plan(in); out.Update != nil {
		q.service = out.Update // what it says of its update
	}
	_, err = st.Update(context.Background(), func(tx *store.Tx) error {
		if err := store.Create(tx, q.node); err != nil {
			return err
		}
		if err := store.Create(tx, q.service); err != nil {
			return err
		}
		for _, t := range q.tasks {
			if err := store.Create(tx, t); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		q.t.Fatal(err)
	}
	return st.View()
}

// TestStays: a user who was not told what became of a removal does not count on what was
// to be removed.
func TestStays(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"removed":           {nil, false},
		"it is not there":   {api.Errorf(api.NotFound, "network n not found"), false},
		"in use":            {api.Errorf(api.Conflict, "network n is in use by service s"), true},
		"nothing was done":  {api.Errorf(api.Unavailable, "this manager has too much to do; nothing was changed"), true},
		"nobody knows":      {api.Errorf(api.DeadlineExceeded, "no quorum of managers has acknowledged the request in time; a change may still come to pass"), false},
		"not allowed":       {api.Errorf(api.PermissionDenied, "ingress is a pre-defined network and cannot be removed"), true},
		"the manager stops": {context.Canceled, false},
	} {
		if got := stays(c.err); got != c.want {
			t.Errorf("%s: it stays: %t", name, got)
		}
	}
}
