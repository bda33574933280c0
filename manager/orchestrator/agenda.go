package orchestrator

import (
	"context"
	"errors"
	"time"

	"github.com/legion-swarm/legion/store"
)

// agenda has the services to plan: now, and at given times.
type agenda struct {
	now    map[string]struct{}
	order  []string
	timers map[string]time.Time
}

func newAgenda() *agenda {
	return &agenda{now: map[string]struct{}{}, timers: map[string]time.Time{}}
}

// add has a service planned next. Tasks without a service have none.
func (a *agenda) add(id string) {
	if _, ok := a.now[id]; ok || id == "" {
		return
	}
	a.now[id] = struct{}{}
	a.order = append(a.order, id)
}

// at has a service planned at a time, unless that is done earlier anyhow.
func (a *agenda) at(id string, t time.Time) {
	if old, ok := a.timers[id]; !ok || t.Before(old) {
		a.timers[id] = t
	}
}

// take returns up to n services to plan now.
func (a *agenda) take(n int) []string {
	batch := a.order[:min(n, len(a.order))]
	a.order = a.order[len(batch):]
	for _, id := range batch {
		delete(a.now, id)
	}
	return batch
}

// wait returns when something has changed, or a service's time has come.
func (a *agenda) wait(ctx context.Context, w *store.Watcher) ([]store.Change, error) {
	wait := ctx
	if next, ok := a.next(); ok {
		var cancel context.CancelFunc
		wait, cancel = context.WithDeadline(ctx, next)
		defer cancel()
	}
	changes, err := w.Next(wait)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = nil
	}
	a.due(time.Now())
	return changes, err
}

func (a *agenda) next() (at time.Time, ok bool) {
	for _, t := range a.timers {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	return at, ok
}

func (a *agenda) due(now time.Time) {
	for id, t := range a.timers {
		if !t.After(now) {
			delete(a.timers, id)
			a.add(id)
		}
	}
}
