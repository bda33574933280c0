package allocator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Loop allocates what new services and tasks need; tasks then are PENDING.
type Loop struct {
	Store *store.Store
	Log   *slog.Logger
}

// maxTasks bounds how many tasks one transaction moves on.
const maxTasks = 2000

// Run blocks until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		l.Log.Info("the allocator fell behind and reads the store anew")
	}
}

// session is the loop from one snapshot on.
type session struct {
	*Loop
	services map[string]struct{} // to look at
	tasks    map[string]struct{}
	refused  map[string]error // services that can't get what they need, with the reason
}

func (l *Loop) follow(ctx context.Context) error {
	view, w := l.Store.Watch(store.KindService, store.KindTask)
	defer w.Close()
	s := &session{Loop: l, services: map[string]struct{}{}, tasks: map[string]struct{}{}, refused: map[string]error{}}
	for o := range store.List[*api.Service](view) {
		s.services[o.ID] = struct{}{}
	}
	for t := range store.List[*api.Task](view, store.ByTaskState(swarm.TaskStateNew)) {
		s.tasks[t.ID] = struct{}{}
	}
	for {
		if err := s.allocate(ctx); err != nil {
			return err
		}
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for i := range changes {
			s.note(&changes[i])
		}
	}
}

func (s *session) note(c *store.Change) {
	if c.Kind == store.KindService {
		for id := range s.refused { // what this one had may be what others wait for
			s.services[id] = struct{}{}
		}
	}
	switch o := c.New.(type) {
	case *api.Service:
		s.services[o.ID] = struct{}{}
	case *api.Task:
		if o.Status.State == swarm.TaskStateNew {
			s.tasks[o.ID] = struct{}{}
		}
	case nil:
		delete(s.refused, c.ID)
	}
}

// allocate takes everything out of the sets.
func (s *session) allocate(ctx context.Context) error {
	if len(s.services) > 0 {
		if err := s.allocateServices(ctx); err != nil {
			return fmt.Errorf("allocate services: %w", err)
		}
		clear(s.services)
	}
	batch := make([]string, 0, min(len(s.tasks), maxTasks))
	for len(s.tasks) > 0 {
		batch = batch[:0]
		for id := range s.tasks {
			if len(batch) == maxTasks {
				break
			}
			batch = append(batch, id)
			delete(s.tasks, id)
		}
		if err := s.allocateTasks(ctx, batch); err != nil {
			return fmt.Errorf("allocate tasks: %w", err)
		}
	}
	return nil
}

func (s *session) allocateServices(ctx context.Context) error {
	refused := map[string]error{}
	_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
		clear(refused)
		ports := api.Ports{}
		for o := range store.List[*api.Service](tx) {
			ports.Add(o)
		}
		for id := range s.services {
			o := store.Get[*api.Service](tx, id)
			if o == nil {
				continue
			}
			c, err := Service(o, ports)
			if err != nil {
				refused[id] = err
				continue
			}
			if c == nil {
				continue
			}
			if err := store.Put(tx, c); err != nil {
				return err
			}
		}
		return nil
	})
	for id := range s.services {
		s.settle(ctx, id, refused[id])
	}
	return err
}

// settle notes what came of a service, and has tasks looked at that waited.
func (s *session) settle(ctx context.Context, id string, refused error) {
	was := s.refused[id]
	switch {
	case refused == nil && was == nil:
		return
	case refused == nil:
		delete(s.refused, id)
	default:
		s.refused[id] = refused
		if was == nil || was.Error() != refused.Error() {
			s.Log.WarnContext(ctx, "a service can't get what it needs", "service", id, "err", refused)
		}
	}
	for t := range store.List[*api.Task](s.Store.View(), store.ByService(id)) {
		if t.Status.State == swarm.TaskStateNew {
			s.tasks[t.ID] = struct{}{}
		}
	}
}

// allocateTasks moves tasks on, in halves if the store won't take them at once.
func (s *session) allocateTasks(ctx context.Context, ids []string) error {
	now := time.Now().UTC()
	_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			t := store.Get[*api.Task](tx, id)
			if t == nil || t.Status.State != swarm.TaskStateNew || api.ToldToEnd(t.DesiredState) {
				continue
			}
			c := Task(t, store.Get[*api.Service](tx, t.ServiceID), s.refused[t.ServiceID], now)
			if c == nil {
				continue
			}
			if err := store.Put(tx, c); err != nil {
				return err
			}
		}
		return nil
	})
	if api.Is(err, api.ResourceExhausted) && len(ids) > 1 {
		half := len(ids) / 2
		if err := s.allocateTasks(ctx, ids[:half]); err != nil {
			return err
		}
		return s.allocateTasks(ctx, ids[half:])
	}
	return err
}
