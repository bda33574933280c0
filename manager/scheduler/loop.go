package scheduler

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Loop assigns pending tasks to nodes.
type Loop struct {
	Store *store.Store
	Log   *slog.Logger
}

// maxAssign bounds how many tasks one transaction assigns.
const maxAssign = 5000

// Run blocks until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) && !errors.Is(err, errDiffers) {
			return err
		}
		l.Log.Info("the scheduler reads the store anew", "why", err)
	}
}

// errDiffers says that the state is not what the store has: a write failed.
var errDiffers = errors.New("scheduler: state differs from the store")

type session struct {
	*Loop
	state *State
	// fresh tasks are to be scheduled, waiting ones were and found no node.
	fresh, waiting map[string]*api.Task
}

func (l *Loop) follow(ctx context.Context) error {
	view, w := l.Store.Watch(store.KindTask, store.KindNode)
	defer w.Close()
	s := &session{Loop: l, state: New(), fresh: map[string]*api.Task{}, waiting: map[string]*api.Task{}}
	now := time.Now()
	for n := range store.List[*api.Node](view) {
		s.state.SetNode(n)
	}
	for t := range store.List[*api.Task](view) {
		s.task(t.ID, t, now)
	}
	for {
		for len(s.fresh) > 0 {
			if err := s.assign(ctx); err != nil {
				return err
			}
		}
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		for i := range changes {
			s.change(&changes[i], now)
		}
	}
}

func (s *session) change(c *store.Change, now time.Time) {
	switch c.Kind {
	case store.KindNode:
		s.retry()
		if n, ok := c.New.(*api.Node); ok && n != nil {
			s.state.SetNode(n)
		} else {
			s.state.RemoveNode(c.ID)
		}
	case store.KindTask:
		t, _ := c.New.(*api.Task)
		s.task(c.ID, t, now)
	}
}

// retry has waiting tasks scheduled again: there may be room now.
func (s *session) retry() {
	for id, t := range s.waiting {
		s.fresh[id] = t
		delete(s.waiting, id)
	}
}

// task takes a task's new version; nil: it was deleted.
func (s *session) task(id string, t *api.Task, now time.Time) {
	if t != nil && t.Status.State == swarm.TaskStatePending && api.Rank(t.DesiredState) <= api.Rank(swarm.TaskStateRunning) {
		if s.waiting[id] != nil {
			s.waiting[id] = t
		} else {
			s.fresh[id] = t
		}
		return
	}
	delete(s.fresh, id)
	delete(s.waiting, id)
	if t == nil || api.Final(t.Status.State) {
		s.retry()
	}
	s.state.SetTask(id, t, now)
}

// assign schedules what is fresh and writes it down.
func (s *session) assign(ctx context.Context) error {
	tasks := make([]*api.Task, 0, min(len(s.fresh), maxAssign))
	for id, t := range s.fresh {
		if len(tasks) == maxAssign {
			break
		}
		tasks = append(tasks, t)
		delete(s.fresh, id)
	}
	slices.SortFunc(tasks, func(a, b *api.Task) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.ID, b.ID))
	})
	now := time.Now().UTC()
	placements := s.state.Schedule(tasks, now)
	for i := range placements {
		if p := &placements[i]; p.NodeID == "" || p.Why != "" {
			s.waiting[p.Task.ID] = p.Task
		}
	}
	lost := false
	_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
		lost = false
		for i := range placements {
			taken, err := write(tx, &placements[i], now)
			if err != nil {
				return err
			}
			lost = lost || !taken
		}
		return nil
	})
	if err == nil && lost {
		err = errDiffers
	}
	return err
}

// write puts a placement in the transaction. It reports false if the task is
// not any more what was scheduled.
func write(tx *store.Tx, p *Placement, now time.Time) (bool, error) {
	cur := store.Get[*api.Task](tx, p.Task.ID)
	if cur == nil || cur.Version != p.Task.Version {
		return p.NodeID == "", nil
	}
	t := *cur
	switch {
	case p.Why == "":
		t.NodeID, t.GenericResources = p.NodeID, p.Resources
		t.Status = swarm.TaskStatus{State: swarm.TaskStateAssigned, Timestamp: now, Message: "scheduler assigned task to node"}
	case t.Status.Err == p.Why:
		return true, nil
	default:
		t.Status = swarm.TaskStatus{State: swarm.TaskStatePending, Timestamp: now, Message: "pending task scheduling", Err: p.Why}
	}
	return true, store.Put(tx, &t)
}
