package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/store"
)

// ServiceHistory returns the service's present version and the earlier ones
// that are kept, newest first.
func (c *Control) ServiceHistory(_ context.Context, name string) ([]api.VersionInfo, error) {
	view := c.cfg.Store.View()
	s, err := c.service(view, name)
	if err != nil {
		return nil, err
	}
	versions := slices.Collect(store.List[*api.ServiceVersion](view, store.ByIDPrefix(api.VersionPrefix(s.ID))))
	current := s.Archive()
	if current.Since.IsZero() {
		current.Since = s.CreatedAt
	}
	versions = append(versions, current)
	out := make([]api.VersionInfo, 0, len(versions))
	for i, v := range versions {
		info := api.VersionInfo{Number: v.Number, Since: v.Since, Current: v == current, Spec: &v.Spec, Changes: []string{}}
		if c := v.Spec.TaskTemplate.ContainerSpec; c != nil {
			info.Image = c.Image
		}
		if i > 0 {
			info.Changes = changes(&versions[i-1].Spec, &v.Spec)
		}
		out = append(out, info)
	}
	slices.Reverse(out)
	return out, nil
}

// ServiceRollback makes an earlier version of a service its newest one.
// NotFound: the version is not kept (any more).
func (c *Control) ServiceRollback(ctx context.Context, name string, to uint64) error {
	now := c.cfg.Store.Now()
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		old, err := c.service(tx, name)
		if err != nil {
			return err
		}
		if to == old.Number {
			return invalid("version %d of service %s is the present one", to, old.Spec.Name)
		}
		v := store.Get[*api.ServiceVersion](tx, api.VersionID(old.ID, to))
		if v == nil {
			return api.Errorf(api.NotFound, "service %s has no version %d: see its history for those that are kept", old.Spec.Name, to)
		}
		spec := v.Spec
		if spec, err = resolve(tx, &spec); err != nil {
			return fmt.Errorf("version %d of service %s can't come back: %w", to, old.Spec.Name, err)
		}
		n := *old
		n.Spec, n.SpecVersion, n.RegistryAuth = spec, v.SpecVersion, v.RegistryAuth
		succeed(&n, old, now)
		n.UpdateStatus = &swarm.UpdateStatus{
			State: swarm.UpdateStateRollbackStarted, StartedAt: began(tx, old.ID, now), Message: fmt.Sprintf("manually requested rollback to version %d", to),
		}
		if n.Job() {
			n.UpdateStatus, n.JobStatus = nil, nextIteration(old, &n, now)
		}
		if err := publish(tx, &n); err != nil {
			return err
		}
		return put(tx, old, &n)
	})
	return err
}

// ServicePromote lets a service's update go on after its canaries. Invalid:
// none is under way that would wait for it.
func (c *Control) ServicePromote(ctx context.Context, name string) error {
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		s, err := c.service(tx, name)
		if err != nil {
			return err
		}
		policy, err := api.ParsePolicy(s.Spec.Labels)
		switch {
		case err != nil:
			return err
		case policy.Canary == 0:
			return invalid("service %s has no canaries: label legion.update.canary says how many", s.Spec.Name)
		case s.Promoted == s.SpecVersion:
			return invalid("the update of service %s is promoted already", s.Spec.Name)
		case s.UpdateStatus == nil || s.UpdateStatus.State != swarm.UpdateStateUpdating:
			return invalid("service %s is not being updated", s.Spec.Name)
		}
		n := *s
		n.Promoted = s.SpecVersion
		return store.Put(tx, &n)
	})
	return err
}

// succeed makes n the version after old, whose spec becomes the previous one.
func succeed(n, old *api.Service, now time.Time) {
	n.PreviousSpec, n.PreviousSpecVersion, n.PreviousRegistryAuth = &old.Spec, old.SpecVersion, old.RegistryAuth
	n.Number, n.SpecSince = old.Number+1, now
}

// keepWayBack leaves an update that is under way the spec to go back to if it
// fails, though the service was scaled meanwhile, say: its previous version has the tasks
// that fail.
func keepWayBack(n, old *api.Service) {
	if old.PreviousSpec == nil || old.UpdateStatus == nil || old.UpdateStatus.State != swarm.UpdateStateUpdating {
		return
	}
	back := *old.PreviousSpec
	back.Mode = n.Spec.Mode
	n.PreviousSpec, n.PreviousSpecVersion, n.PreviousRegistryAuth = &back, old.PreviousSpecVersion, old.PreviousRegistryAuth
}

// put writes a service, and keeps the version that it takes the place of.
func put(tx *store.Tx, old, n *api.Service) error {
	if err := store.Put(tx, n); err != nil {
		return err
	}
	return orchestrator.Archive(tx, old, n)
}
