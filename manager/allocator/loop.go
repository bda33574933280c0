package allocator

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
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
const maxTasks = 5000

// Run blocks until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		l.Log.Info("the allocator reads the store anew")
	}
}

func (l *Loop) follow(ctx context.Context) error {
	view, w := l.Store.Watch(store.KindService, store.KindTask)
	defer w.Close()
	services, tasks := map[string]bool{}, map[string]bool{}
	for s := range store.List[*api.Service](view) {
		services[s.ID] = true
	}
	for t := range store.List[*api.Task](view, store.ByTaskState(swarm.TaskStateNew)) {
		tasks[t.ID] = true
	}
	for {
		if err := l.allocate(ctx, services, tasks); err != nil {
			return err
		}
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes {
			if c.New == nil {
				continue
			}
			switch o := c.New.(type) {
			case *api.Service:
				services[o.ID] = true
			case *api.Task:
				if o.Status.State == swarm.TaskStateNew {
					tasks[o.ID] = true
				}
			}
		}
	}
}

// allocate takes everything out of the sets that it is done with.
func (l *Loop) allocate(ctx context.Context, services, tasks map[string]bool) error {
	if len(services) > 0 {
		if err := l.services(ctx, services); err != nil {
			return err
		}
		clear(services)
	}
	for len(tasks) > 0 {
		batch := make([]string, 0, min(len(tasks), maxTasks))
		for id := range tasks {
			if len(batch) == maxTasks {
				break
			}
			batch = append(batch, id)
			delete(tasks, id)
		}
		if err := l.tasks(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (l *Loop) services(ctx context.Context, ids map[string]bool) error {
	_, err := l.Store.Update(ctx, func(tx *store.Tx) error {
		ports := api.Ports{}
		for s := range store.List[*api.Service](tx) {
			ports.Add(s)
		}
		for id := range ids {
			s := store.Get[*api.Service](tx, id)
			if s == nil {
				continue
			}
			e, err := endpoint(s, ports)
			if err != nil {
				l.Log.Error("a service's ports can't be allocated", "service", s.ID, "err", err)
				continue
			}
			if reflect.DeepEqual(e, s.Endpoint) {
				continue
			}
			c := *s
			c.Endpoint = e
			if err := store.Put(tx, &c); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// endpoint is what a service's Endpoint should be.
func endpoint(s *api.Service, ports api.Ports) (swarm.Endpoint, error) {
	var e swarm.Endpoint
	if s.Spec.EndpointSpec != nil {
		e.Spec = *s.Spec.EndpointSpec
	}
	p, err := ports.Allocate(s)
	e.Ports = p
	return e, err
}

func (l *Loop) tasks(ctx context.Context, ids []string) error {
	now := time.Now().UTC()
	_, err := l.Store.Update(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			t := store.Get[*api.Task](tx, id)
			if t == nil || t.Status.State != swarm.TaskStateNew {
				continue
			}
			c := *t
			if s := store.Get[*api.Service](tx, t.ServiceID); s != nil {
				c.Ports = s.Endpoint.Ports
			}
			c.Networks = nil
			for _, n := range t.Spec.Networks {
				c.Networks = append(c.Networks, api.NetworkAttachment{NetworkID: n.Target, Aliases: n.Aliases, DriverOpts: n.DriverOpts})
			}
			c.Status = swarm.TaskStatus{State: swarm.TaskStatePending, Timestamp: now, Message: "pending task scheduling"}
			if err := store.Put(tx, &c); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}
