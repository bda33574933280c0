package allocator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Loop allocates what new services and tasks need; tasks then are PENDING. It is
// the only one that gives out addresses, so that what is free can be decided in
// memory.
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
	addresses *State
	// What to look at, by id.
	services, tasks, nodes map[string]struct{}
	ended                  map[string]struct{} // attachments that are over
	refused                map[string]error    // services that can't get what they need, with the reason
	// Who waits for an address.
	waitingServices, waitingTasks, waitingNodes *waiters
}

func (l *Loop) follow(ctx context.Context) error {
	view, w := l.Store.Watch(store.KindNetwork, store.KindService, store.KindTask, store.KindNode)
	defer w.Close()
	s := l.begin(view)
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

// begin computes from the store what is in use, and what is to be looked at.
func (l *Loop) begin(view *store.View) *session {
	s := &session{
		Loop: l, addresses: NewState(), services: map[string]struct{}{}, tasks: map[string]struct{}{}, nodes: map[string]struct{}{},
		ended: map[string]struct{}{}, refused: map[string]error{},
		waitingServices: newWaiters(), waitingTasks: newWaiters(), waitingNodes: newWaiters(),
	}
	for n := range store.List[*api.Network](view) {
		s.addresses.SetNetwork(n)
	}
	for n := range store.List[*api.Node](view) {
		s.addresses.ChangeNode(nil, n)
		s.nodes[n.ID] = struct{}{}
	}
	for o := range store.List[*api.Service](view) {
		s.addresses.ChangeService(nil, o)
		s.services[o.ID] = struct{}{}
	}
	for t := range store.List[*api.Task](view) {
		s.addresses.ChangeTask(nil, t)
		s.lookAt(t)
	}
	s.addresses.Resume()
	return s
}

// lookAt has a task looked at if there is something to do with it.
func (s *session) lookAt(t *api.Task) {
	switch {
	case t.Attachment() && api.Final(t.Status.State):
		s.ended[t.ID] = struct{}{}
	case t.Status.State == swarm.TaskStateNew:
		s.tasks[t.ID] = struct{}{}
	}
}

func (s *session) note(c *store.Change) {
	switch c.Kind {
	case store.KindNetwork:
		s.noteNetwork(c)
	case store.KindNode:
		s.noteNode(c)
	case store.KindService:
		was, _ := c.Old.(*api.Service)
		is, _ := c.New.(*api.Service)
		s.addresses.ChangeService(was, is)
		s.retryServices(false) // what this one published may be what others wait for
		if is == nil {
			delete(s.refused, c.ID)
			delete(s.services, c.ID)
			s.waitingServices.remove(c.ID)
			return
		}
		s.services[c.ID] = struct{}{}
	case store.KindTask:
		was, _ := c.Old.(*api.Task)
		is, _ := c.New.(*api.Task)
		s.addresses.ChangeTask(was, is)
		if is == nil {
			delete(s.tasks, c.ID)
			delete(s.ended, c.ID)
			s.waitingTasks.remove(c.ID)
		} else if s.waitingTasks.of[c.ID] == "" || is.Status.State != swarm.TaskStateNew {
			s.lookAt(is)
		}
	}
}

func (s *session) noteNetwork(c *store.Change) {
	was := s.addresses.ingress
	if n, _ := c.New.(*api.Network); n != nil {
		s.addresses.SetNetwork(n)
	} else {
		s.addresses.RemoveNetwork(c.ID)
	}
	s.retryServices(true)
	for _, id := range s.waitingTasks.all() {
		s.tasks[id] = struct{}{}
	}
	if s.addresses.ingress != was {
		s.everyNode()
	}
}

// retryServices has refused services looked at again: all, or those that do not
// wait for an address.
func (s *session) retryServices(all bool) {
	for id := range s.refused {
		if all || s.waitingServices.of[id] == "" {
			s.services[id] = struct{}{}
		}
	}
}

// due has those looked at for which there is an address now.
func due(w *waiters, free func(string) uint64, to map[string]struct{}) {
	for _, id := range w.due(free) {
		to[id] = struct{}{}
	}
}

// allocate takes everything out of the sets.
func (s *session) allocate(ctx context.Context) error {
	if err := s.removeEnded(ctx); err != nil {
		return fmt.Errorf("remove attachments: %w", err)
	}
	// Who was offered an address may not want it any more: then others are due.
	for due(s.waitingNodes, s.addresses.Free, s.nodes); len(s.nodes) > 0; due(s.waitingNodes, s.addresses.Free, s.nodes) {
		if err := s.allocateNodes(ctx); err != nil {
			return fmt.Errorf("allocate nodes: %w", err)
		}
	}
	for due(s.waitingServices, s.addresses.Free, s.services); len(s.services) > 0; due(s.waitingServices, s.addresses.Free, s.services) {
		if err := s.allocateServices(ctx); err != nil {
			return fmt.Errorf("allocate services: %w", err)
		}
		clear(s.services)
	}
	var batch []string
	for due(s.waitingTasks, s.addresses.Free, s.tasks); len(s.tasks) > 0; due(s.waitingTasks, s.addresses.Free, s.tasks) {
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
	var undo []func()
	_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
		revert(&undo)
		clear(refused)
		var ports api.Ports // read when the first service needs some
		for id := range s.services {
			o := store.Get[*api.Service](tx, id)
			if o == nil {
				continue
			}
			if ports == nil && o.Spec.EndpointSpec != nil && len(o.Spec.EndpointSpec.Ports) > 0 {
				ports = portsOf(tx)
			}
			c, err := Service(o, ports, s.addresses)
			if err != nil {
				refused[id] = err
				continue
			}
			if c == nil {
				continue
			}
			undo = append(undo, func() { s.addresses.change(heldByService(c), heldByService(o)) })
			if err := store.Put(tx, c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		revert(&undo)
	}
	for id := range s.services {
		s.settle(ctx, id, refused[id])
	}
	return err
}

// portsOf are the published ports in use.
func portsOf(tx *store.Tx) api.Ports {
	ports := api.Ports{}
	for o := range store.List[*api.Service](tx) {
		ports.Add(o)
	}
	return ports
}

// revert gives back what an attempt that was not written had taken.
func revert(undo *[]func()) {
	for _, f := range *undo {
		f()
	}
	*undo = nil
}

// settle notes what came of a service, and has tasks looked at that waited.
func (s *session) settle(ctx context.Context, id string, refused error) {
	was := s.refused[id]
	if network := fullNetwork(refused); network != "" {
		s.waitingServices.add(network, id)
	} else {
		s.waitingServices.remove(id)
	}
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
	now := s.Store.Now()
	var undo []func()
	waiting := map[string]string{} // network by task
	_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
		revert(&undo)
		clear(waiting)
		for _, id := range ids {
			t := store.Get[*api.Task](tx, id)
			if t == nil || t.Status.State != swarm.TaskStateNew || api.ToldToEnd(t.DesiredState) {
				continue
			}
			refused := s.refused[t.ServiceID]
			c, wait := Task(t, store.Get[*api.Service](tx, t.ServiceID), refused, s.addresses, now)
			if network := fullNetwork(wait); network != "" && refused == nil {
				waiting[id] = network
			}
			if c == nil {
				continue
			}
			undo = append(undo, func() { s.addresses.ChangeTask(c, nil) })
			if err := store.Put(tx, c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		revert(&undo)
	}
	if api.Is(err, api.ResourceExhausted) && len(ids) > 1 {
		half := len(ids) / 2
		if err := s.allocateTasks(ctx, ids[:half]); err != nil {
			return err
		}
		return s.allocateTasks(ctx, ids[half:])
	}
	for id, network := range waiting {
		s.waitingTasks.add(network, id)
	}
	return err
}
