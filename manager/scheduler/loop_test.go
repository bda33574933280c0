package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// loop runs the scheduler on a store within a bubble.
func loop(t *testing.T, s *store.Store) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- (&Loop{Store: s, Log: slog.New(slog.DiscardHandler)}).Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func get(s *store.Store, id string) *api.Task { return store.Get[*api.Task](s.View(), id) }

func TestLoopExplainsAndTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := tasks("web", 3, func(sp *api.TaskSpec) { sp.Placement = &swarm.Placement{Constraints: []string{"node.labels.x==y"}} })
		for _, task := range ts {
			task.DesiredState, task.Status.State = swarm.TaskStateRunning, swarm.TaskStatePending
		}
		s := filled(t, 2, ts)
		defer loop(t, s)()
		got := get(s, "web0")
		if got.Status.State != swarm.TaskStatePending || got.Status.Err != "no suitable node (scheduling constraints not satisfied on 2 nodes)" {
			t.Errorf("%+v", got.Status)
		}
		index := s.View().Index()
		time.Sleep(time.Minute)
		if s.View().Index() != index {
			t.Error("the scheduler writes though nothing has changed")
		}
		update(t, s, func(tx *store.Tx) error {
			n := *store.Get[*api.Node](tx, benchNode(1).ID)
			n.Spec.Labels = map[string]string{"x": "y"}
			return store.Put(tx, &n)
		})
		synctest.Wait()
		for _, task := range ts {
			if got := get(s, task.ID); got.NodeID != benchNode(1).ID || got.Status.Message != "scheduler assigned task to node" || got.Status.Err != "" {
				t.Errorf("%+v", got.Status)
			}
		}
	})
}

// A task that ends makes room for one that waits; one that is not wanted any
// more is left alone.
func TestLoopWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := tasks("web", 3, func(sp *api.TaskSpec) {
			sp.Endpoint = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 80, PublishMode: "host"}}}
		})
		for _, task := range ts {
			task.DesiredState, task.Status.State = swarm.TaskStateRunning, swarm.TaskStatePending
		}
		ts[2].DesiredState = swarm.TaskStateShutdown
		s := filled(t, 1, ts)
		defer loop(t, s)()
		first, second := get(s, "web0"), get(s, "web1")
		if first.NodeID == "" {
			first, second = second, first
		}
		if second.NodeID != "" || second.Status.Err != "no suitable node (host-mode port already in use on 1 node)" {
			t.Errorf("%+v", second.Status)
		}
		update(t, s, func(tx *store.Tx) error {
			c := *first
			c.Status.State = swarm.TaskStateFailed
			return store.Put(tx, &c)
		})
		synctest.Wait()
		if got := get(s, second.ID); got.Status.State != swarm.TaskStateAssigned {
			t.Errorf("%+v", got.Status)
		}
		if got := get(s, "web2"); got.Status.State != swarm.TaskStatePending || got.Status.Err != "" {
			t.Errorf("%+v", got.Status)
		}
	})
}

// Others change tasks while the scheduler places them.
func TestLoopAmongOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := tasks("web", 50, nil)
		for _, task := range ts {
			task.DesiredState, task.Status.State = swarm.TaskStateRunning, swarm.TaskStatePending
		}
		s := filled(t, 3, nil)
		defer loop(t, s)()
		for i, task := range ts {
			update(t, s, func(tx *store.Tx) error { return store.Create(tx, task) })
			update(t, s, func(tx *store.Tx) error {
				c := *store.Get[*api.Task](tx, task.ID)
				switch i % 3 {
				case 0:
					c.DesiredState = swarm.TaskStateShutdown
				case 1:
					return store.Delete[*api.Task](tx, task.ID)
				default:
					c.Status.Message = "touched"
				}
				return store.Put(tx, &c)
			})
		}
		time.Sleep(time.Second) // writes that met others' come again
		synctest.Wait()
		for task := range store.List[*api.Task](s.View()) {
			if task.DesiredState == swarm.TaskStateRunning && task.NodeID == "" {
				t.Errorf("%s was forgotten: %+v", task.ID, task.Status)
			}
		}
	})
}

// An explanation that another write overtook is given for the newer version.
func TestLoopExplainsTheNewerVersion(t *testing.T) {
	s := &session{Loop: &Loop{}, state: New(), fresh: map[string]*api.Task{}, waiting: map[string]Placement{}}
	old := tasks("web", 1, nil)[0]
	old.DesiredState, old.Status.State = swarm.TaskStateRunning, swarm.TaskStatePending
	s.waiting[old.ID] = Placement{Task: old, Why: "no suitable node"}
	newer := *old
	newer.Version.Index++
	s.task(newer.ID, old, &newer, time.Now())
	if batch := s.take(); len(batch) != 1 || batch[0] != &newer {
		t.Errorf("to schedule: %v", batch)
	}
	explained := newer
	explained.Status.Err = "no suitable node"
	s.waiting[old.ID] = Placement{Task: &newer, Why: "no suitable node"}
	s.task(explained.ID, &newer, &explained, time.Now())
	if batch := s.take(); len(batch) != 0 {
		t.Errorf("the loop's own explanation is scheduled again: %v", batch)
	}
}

func wanted(ts []*api.Task) []*api.Task {
	for _, task := range ts {
		task.DesiredState, task.Status.State = swarm.TaskStateRunning, swarm.TaskStatePending
	}
	return ts
}

// Who has to leave is told so, by name; the room is then the one's who asked for it.
func TestLoopPreempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := func(sp *api.TaskSpec) {
			sp.Endpoint = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 80, PublishMode: "host"}}}
		}
		s := filled(t, 1, wanted(tasks("low", 1, port)))
		defer loop(t, s)()
		high := wanted(labelled("high", 1, map[string]string{"priority": "7"}, port))[0]
		update(t, s, func(tx *store.Tx) error { return store.Create(tx, high) })
		synctest.Wait()
		low := get(s, "low0")
		if low.Evicted != "preempted by high.1, of priority 7" {
			t.Errorf("%+v", low)
		}
		if err := get(s, "high0").Status.Err; err != "waiting for room on node "+benchNode(0).ID+": 1 task of lower priority must leave" {
			t.Error(err)
		}
		again := wanted(tasks("low", 2, port))[1]
		update(t, s, func(tx *store.Tx) error {
			c := *low
			c.Status.State = swarm.TaskStateShutdown
			if err := store.Put(tx, &c); err != nil {
				return err
			}
			return store.Create(tx, again)
		})
		synctest.Wait()
		if get(s, "high0").NodeID == "" || get(s, again.ID).Status.Err != "no suitable node (host-mode port already in use on 1 node)" {
			t.Errorf("%+v %+v", get(s, "high0").Status, get(s, again.ID).Status)
		}
	})
}

// A task that waits for another service is placed when that has come.
func TestLoopFollowsAffinity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := filled(t, 2, wanted(labelled("web", 1, map[string]string{"affinity": "service==db"}, nil)))
		defer loop(t, s)()
		if err := get(s, "web0").Status.Err; err != "no suitable node (affinity to service db not satisfied on 2 nodes)" {
			t.Error(err)
		}
		update(t, s, func(tx *store.Tx) error { return store.Create(tx, wanted(tasks("db", 1, nil))[0]) })
		synctest.Wait()
		if db, web := get(s, "db0"), get(s, "web0"); web.NodeID == "" || web.NodeID != db.NodeID {
			t.Errorf("web is on %q, db on %q", web.NodeID, db.NodeID)
		}
	})
}
