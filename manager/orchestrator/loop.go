package orchestrator

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// defaultHistory is how many tasks a slot keeps when the swarm does not say.
const defaultHistory = 5

// maxBatch bounds how many services are planned in one transaction.
const maxBatch = 32

// Loop keeps the tasks of all services as Plan has them.
type Loop struct {
	Store *store.Store
	Log   *slog.Logger
}

// Run plans all services, then those that something has changed for. It blocks
// until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		l.Log.Info("fell behind the store; all services are planned anew")
	}
}

// follow runs from one snapshot on.
func (l *Loop) follow(ctx context.Context) error {
	view, w := l.Store.Watch(store.KindService, store.KindTask, store.KindNode)
	defer w.Close()
	a := newAgenda()
	for s := range store.List[*api.Service](view) {
		a.add(s.ID)
	}
	for t := range store.List[*api.Task](view) {
		a.add(t.ServiceID)
	}
	for {
		for batch := a.take(maxBatch); len(batch) > 0; batch = a.take(maxBatch) {
			if err := l.plan(ctx, batch, a); err != nil {
				return err
			}
		}
		changes, err := a.wait(ctx, w)
		if err != nil {
			return err
		}
		for i := range changes {
			l.note(a, &changes[i])
		}
	}
}

// note adds the services that a change concerns.
func (l *Loop) note(a *agenda, c *store.Change) {
	switch c.Kind {
	case store.KindService:
		a.add(c.ID)
	case store.KindTask:
		for _, o := range [...]any{c.Old, c.New} {
			if t, ok := o.(*api.Task); ok && t != nil {
				a.add(t.ServiceID)
			}
		}
	case store.KindNode:
		if sameForPlans(c) {
			return
		}
		view := l.Store.View()
		for t := range store.List[*api.Task](view, store.ByNode(c.ID)) {
			a.add(t.ServiceID)
		}
		for s := range store.List[*api.Service](view) {
			if global(s) {
				a.add(s.ID)
			}
		}
	}
}

// sameForPlans reports whether a node changed in nothing that plans look at.
func sameForPlans(c *store.Change) bool {
	a, okA := c.Old.(*api.Node)
	b, okB := c.New.(*api.Node)
	return okA && okB && a != nil && b != nil && a.Spec.Availability == b.Spec.Availability && a.Status.State == b.Status.State &&
		a.Role == b.Role && maps.Equal(a.Spec.Labels, b.Spec.Labels) && maps.Equal(a.Description.Engine.Labels, b.Description.Engine.Labels) &&
		a.Description.Hostname == b.Description.Hostname
}

// plan plans the services in one transaction.
func (l *Loop) plan(ctx context.Context, services []string, a *agenda) error {
	var again map[string]time.Time
	_, err := l.Store.Update(ctx, func(tx *store.Tx) error {
		again = map[string]time.Time{}
		nodes, history := surroundings(tx)
		for _, id := range services {
			in := Input{
				Service: store.Get[*api.Service](tx, id), Nodes: nodes, Now: time.Now().UTC(), NewID: api.NewID,
			}
			for t := range store.List[*api.Task](tx, store.ByService(id)) {
				in.Tasks = append(in.Tasks, t)
			}
			at, err := write(tx, in, history)
			if err != nil {
				return err
			}
			if !at.IsZero() {
				again[id] = at
			}
		}
		return nil
	})
	for id, at := range again {
		a.at(id, at)
	}
	return err
}

func surroundings(tx *store.Tx) (nodes map[string]*api.Node, history int64) {
	nodes, history = map[string]*api.Node{}, defaultHistory
	for n := range store.List[*api.Node](tx) {
		nodes[n.ID] = n
	}
	for c := range store.List[*api.Cluster](tx) {
		if h := c.Spec.Orchestration.TaskHistoryRetentionLimit; h != nil {
			history = *h
		}
	}
	return nodes, history
}

// write puts a service's plan in the transaction.
func write(tx *store.Tx, in Input, history int64) (again time.Time, err error) {
	out := Plan(in)
	for _, t := range in.Tasks {
		desired, ok := out.Desired[t.ID]
		if !ok {
			continue
		}
		c := *t
		c.DesiredState = desired
		if err := store.Put(tx, &c); err != nil {
			return again, err
		}
	}
	for _, t := range out.Create {
		if err := store.Create(tx, t); err != nil {
			return again, err
		}
	}
	if out.Update != nil {
		if err := store.Put(tx, out.Update); err != nil {
			return again, err
		}
	}
	for _, id := range Reap(in, history) {
		if err := store.Delete[*api.Task](tx, id); err != nil {
			return again, err
		}
	}
	return out.Again, nil
}
