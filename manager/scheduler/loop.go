package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Loop assigns pending tasks to nodes.
type Loop struct {
	Store *store.Store
	Log   *slog.Logger
}

const (
	// maxBatch bounds how many tasks are scheduled, and written, at a time.
	maxBatch = 1000
	// writers bounds how many batches are being written while the next is
	// scheduled.
	writers = 4
)

// Run blocks until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		l.Log.Info("the scheduler fell behind and reads the store anew")
	}
}

// session is the loop from one snapshot on.
type session struct {
	*Loop
	state *State
	// queue has the tasks to schedule, oldest first. An entry that is not in
	// fresh any more is out of date.
	queue []*api.Task
	fresh map[string]*api.Task
	// waiting tasks found no node.
	waiting map[string]Placement
	// affine is set once a task has waited that depends on where others are.
	affine bool
}

// follow runs until the watch fails, and waits for its writers.
func (l *Loop) follow(ctx context.Context) (err error) {
	view, w := l.Store.Watch(store.KindTask, store.KindNode)
	defer w.Close()
	s := &session{Loop: l, state: New(), fresh: map[string]*api.Task{}, waiting: map[string]Placement{}}
	s.load(view)
	s.state.Settle(view)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	defer func() {
		if failed := g.Wait(); failed != nil && ctx.Err() == nil {
			err = failed
		}
	}()
	for {
		s.schedule(gctx, g)
		changes, view, err := w.NextView(gctx)
		if err != nil {
			return err
		}
		now := time.Now()
		for i := range changes {
			s.change(&changes[i], now)
		}
		s.state.Settle(view)
	}
}

func (s *session) load(view *store.View) {
	now := time.Now()
	for n := range store.List[*api.Node](view) {
		s.state.SetNode(n)
	}
	for t := range store.List[*api.Task](view) {
		s.task(t.ID, nil, t, now)
	}
	slices.SortFunc(s.queue, older)
}

// older sorts tasks in the order in which they are scheduled.
func older(a, b *api.Task) int {
	return cmp.Or(cmp.Compare(b.Spec.Priority(), a.Spec.Priority()), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.ID, b.ID))
}

func (s *session) change(c *store.Change, now time.Time) {
	switch c.Kind {
	case store.KindNode:
		n, ok := c.New.(*api.Node)
		if !ok || n == nil {
			s.state.RemoveNode(c.ID)
		} else if !s.state.SetNode(n) {
			return
		}
		s.retry()
	case store.KindTask:
		was, _ := c.Old.(*api.Task)
		t, _ := c.New.(*api.Task)
		s.task(c.ID, was, t, now)
	}
}

// retry has waiting tasks scheduled again: there may be room now.
func (s *session) retry() {
	if len(s.waiting) == 0 {
		return
	}
	n := len(s.queue)
	for id, p := range s.waiting {
		s.fresh[id] = p.Task
		s.queue = append(s.queue, p.Task)
	}
	clear(s.waiting)
	slices.SortFunc(s.queue[n:], older)
}

// task takes a task's new version, after the last one; nil: it was deleted.
func (s *session) task(id string, was, t *api.Task, now time.Time) {
	pending := t != nil && t.Status.State == swarm.TaskStatePending && !api.ToldToEnd(t.DesiredState)
	if p, ok := s.waiting[id]; pending && ok && t.Status.Err == p.Why { // our own explanation
		s.waiting[id] = Placement{Task: t, Why: p.Why}
		return
	}
	delete(s.fresh, id)
	delete(s.waiting, id)
	if s.state.Change(id, was, t, now) {
		s.retry()
	}
	if pending {
		s.fresh[id] = t
		s.queue = append(s.queue, t)
	}
}

// schedule places all that is fresh, and has it written.
func (s *session) schedule(ctx context.Context, g *errgroup.Group) {
	for ctx.Err() == nil {
		batch := s.take()
		if len(batch) == 0 {
			return
		}
		placements := s.state.Schedule(batch, time.Now())
		for i := range placements {
			if p := &placements[i]; p.NodeID == "" {
				s.waiting[p.Task.ID] = *p
				s.affine = s.affine || p.Task.Spec.ServiceLabels[api.AffinityLabel] != ""
			}
		}
		s.another()
		placements = slices.DeleteFunc(placements, func(p Placement) bool {
			return p.NodeID == "" && p.Task.Status.Err == p.Why && len(p.Evict) == 0
		})
		if len(placements) > 0 {
			now := s.Store.Now()
			g.Go(func() error { return s.write(ctx, placements, now) })
		}
	}
}

// another has tasks that wait for another service scheduled again if one has come
// to a node.
func (s *session) another() {
	if !s.affine || !s.state.news {
		return
	}
	s.state.news = false
	n := len(s.queue)
	for id, p := range s.waiting {
		if _, ok := p.Task.Spec.ServiceLabels[api.AffinityLabel]; ok {
			s.fresh[id] = p.Task
			s.queue = append(s.queue, p.Task)
			delete(s.waiting, id)
		}
	}
	slices.SortFunc(s.queue[n:], older)
}

// take returns the next tasks to schedule.
func (s *session) take() []*api.Task {
	var batch []*api.Task
	for len(s.queue) > 0 && len(batch) < maxBatch {
		t := s.queue[0]
		s.queue = s.queue[1:]
		if s.fresh[t.ID] == t {
			delete(s.fresh, t.ID)
			batch = append(batch, t)
		}
	}
	return batch
}

// write writes placements down, in halves if the store won't take them at once.
func (l *Loop) write(ctx context.Context, placements []Placement, now time.Time) error {
	_, err := l.Store.Update(ctx, func(tx *store.Tx) error {
		for i := range placements {
			if err := place(tx, &placements[i], now); err != nil {
				return err
			}
		}
		return nil
	})
	if api.Is(err, api.ResourceExhausted) && len(placements) > 1 {
		half := len(placements) / 2
		if err := l.write(ctx, placements[:half], now); err != nil {
			return err
		}
		return l.write(ctx, placements[half:], now)
	}
	if err != nil {
		return fmt.Errorf("write placements: %w", err)
	}
	return nil
}

// place puts a placement in the transaction, unless the task is not any more
// what was scheduled: then the watch will say so, and the state is mended.
func place(tx *store.Tx, p *Placement, now time.Time) error {
	cur := store.Get[*api.Task](tx, p.Task.ID)
	if cur == nil {
		return nil
	}
	if cur.NodeID == p.Task.NodeID && !leaving(cur) {
		if err := evict(tx, p); err != nil {
			return err
		}
	}
	if cur.Version != p.Task.Version {
		return nil
	}
	t := *cur
	switch {
	case p.NodeID == "" && t.Status.Err == p.Why:
		return nil
	case p.NodeID == "":
		t.Status = swarm.TaskStatus{State: swarm.TaskStatePending, Timestamp: now, Message: "pending task scheduling", Err: p.Why}
	case t.NodeID != "":
		t.GenericResources = p.Resources
		t.Status = swarm.TaskStatus{State: swarm.TaskStateAssigned, Timestamp: now, Message: "scheduler confirmed task can run on preassigned node"}
	default:
		t.NodeID, t.GenericResources = p.NodeID, p.Resources
		t.Status = swarm.TaskStatus{State: swarm.TaskStateAssigned, Timestamp: now, Message: "scheduler assigned task to node"}
	}
	return store.Put(tx, &t)
}

// evict marks those that have to leave for the placement's task; the orchestrator
// ends them.
func evict(tx *store.Tx, p *Placement) error {
	for _, v := range p.Evict {
		cur := store.Get[*api.Task](tx, v.ID)
		if cur == nil || leaving(cur) || api.Final(cur.Status.State) {
			continue
		}
		t := *cur
		t.Evicted = evictedBy(p.Task)
		if err := store.Put(tx, &t); err != nil {
			return err
		}
	}
	return nil
}
