package rotator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Loop updates services as Plan has them.
type Loop struct {
	Store *store.Store
	// Update updates the service with this id, if it has this version still, as a
	// user's update does.
	Update func(ctx context.Context, id string, version uint64, spec *swarm.ServiceSpec) error
	Log    *slog.Logger
}

// Run blocks until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		l.Log.Info("the rotator fell behind and reads the store anew")
	}
}

func (l *Loop) follow(ctx context.Context) error {
	view, w := l.Store.Watch(store.KindService, store.KindSecret, store.KindConfig)
	defer w.Close()
	rotating := map[string]struct{}{} // ids of services that ask for newer versions
	for s := range store.List[*api.Service](view) {
		note(rotating, s.ID, s)
	}
	due := maps.Clone(rotating)
	for {
		if len(due) > 0 {
			if err := l.plan(ctx, l.Store.View(), due); err != nil {
				return err
			}
		}
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		due = map[string]struct{}{}
		for _, c := range changes {
			if c.Kind != store.KindService {
				maps.Copy(due, rotating)
				continue
			}
			s, _ := c.New.(*api.Service)
			note(rotating, c.ID, s)
			if _, ok := rotating[c.ID]; ok {
				due[c.ID] = struct{}{}
			}
		}
	}
}

// note keeps the set up to date; s is nil for a service that is gone.
func note(rotating map[string]struct{}, id string, s *api.Service) {
	if s != nil && Rotates(&s.Spec) {
		rotating[id] = struct{}{}
	} else {
		delete(rotating, id)
	}
}

func (l *Loop) plan(ctx context.Context, view *store.View, services map[string]struct{}) error {
	versions := Read(view)
	for _, id := range slices.Sorted(maps.Keys(services)) {
		s := store.Get[*api.Service](view, id)
		if s == nil {
			continue
		}
		spec, changed := Plan(s, versions)
		if !changed {
			continue
		}
		err := l.Update(ctx, id, s.Version.Index, &spec)
		switch {
		case err == nil:
			l.Log.Info("a service takes up newer versions of its secrets or configs", "service", s.Spec.Name)
		case api.Is(err, api.OutOfSequence), api.Is(err, api.NotFound): // it changed meanwhile, and comes again
		case api.Is(err, api.Invalid):
			l.Log.Warn("a service can't take up newer versions of its secrets or configs", "service", s.Spec.Name, "err", err)
		default:
			return fmt.Errorf("update service %s: %w", s.Spec.Name, err)
		}
	}
	return nil
}
