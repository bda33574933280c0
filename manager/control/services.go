package control

import (
	"context"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/store"
)

// ServiceOptions go with the writes of services.
type ServiceOptions struct {
	// RegistryAuth is the encoded login that goes to the nodes.
	RegistryAuth string
	// RegistryAuthFrom is "spec" (or empty) or "previous-spec".
	RegistryAuthFrom string
	// Rollback is "previous" to go back to the previous spec.
	Rollback string
}

// nameTries is how many random names are tried for a service without one.
const nameTries = 8

// ServiceCreate adds a service. One without a name is given a random one.
func (c *Control) ServiceCreate(ctx context.Context, spec *swarm.ServiceSpec, o ServiceOptions) (*swarm.ServiceCreateResponse, error) {
	if spec.Name != "" {
		return c.serviceCreate(ctx, spec, o)
	}
	for try := 0; ; try++ {
		named := *spec
		named.Name = randomName(try)
		if r, err := c.serviceCreate(ctx, &named, o); !api.Is(err, api.Exists) || try == nameTries {
			return r, err
		}
	}
}

func (c *Control) serviceCreate(ctx context.Context, spec *swarm.ServiceSpec, o ServiceOptions) (*swarm.ServiceCreateResponse, error) {
	if err := ValidateService(spec); err != nil {
		return nil, err
	}
	id, now := api.NewID(), c.cfg.Store.Now()
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		n := &api.Service{RegistryAuth: o.RegistryAuth, SpecVersion: 1, Number: 1, SpecSince: now}
		n.ID = id
		n.JobStatus = firstIteration(spec, now)
		var err error
		if n.Spec, err = resolve(tx, spec); err != nil {
			return err
		}
		if err := publish(tx, n); err != nil {
			return err
		}
		return store.Create(tx, n)
	})
	if err != nil {
		return nil, err
	}
	return &swarm.ServiceCreateResponse{ID: id, Warnings: warnings(spec)}, nil
}

// ServiceUpdate replaces a service's spec, or goes back to the previous one.
func (c *Control) ServiceUpdate(ctx context.Context, name string, version uint64, spec *swarm.ServiceSpec, o ServiceOptions) (*swarm.ServiceUpdateResponse, error) {
	switch {
	case o.Rollback != "" && o.Rollback != "previous":
		return nil, invalid("unrecognized rollback option %q: want \"previous\"", o.Rollback)
	case o.RegistryAuthFrom != "" && o.RegistryAuthFrom != "spec" && o.RegistryAuthFrom != "previous-spec":
		return nil, invalid("unsupported registryAuthFrom value %q: want \"spec\" or \"previous-spec\"", o.RegistryAuthFrom)
	}
	if o.Rollback == "" {
		if err := ValidateService(spec); err != nil {
			return nil, err
		}
	}
	now := c.cfg.Store.Now()
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		old, err := c.service(tx, name)
		if err != nil {
			return err
		}
		if err := store.Saw(old, version); err != nil {
			return err
		}
		n, err := updated(tx, old, spec, o, now)
		if err != nil {
			return err
		}
		if err := publish(tx, n); err != nil {
			return err
		}
		return put(tx, old, n)
	})
	if err != nil {
		return nil, err
	}
	if o.Rollback != "" {
		return &swarm.ServiceUpdateResponse{}, nil
	}
	return &swarm.ServiceUpdateResponse{Warnings: warnings(spec)}, nil
}

// updated is the service as an update makes it.
func updated(r store.Reader, old *api.Service, spec *swarm.ServiceSpec, o ServiceOptions, now time.Time) (*api.Service, error) {
	if o.Rollback == "previous" {
		return rolledBack(r, old, now)
	}
	if mode(&old.Spec) != mode(spec) {
		return nil, api.Errorf(api.Unimplemented, "service mode change is not allowed: %s is %s", old.Spec.Name, mode(&old.Spec))
	}
	if spec.Name != old.Spec.Name {
		return nil, api.Errorf(api.Unimplemented, "renaming services is not supported: %s is named %s", old.ID, old.Spec.Name)
	}
	n := *old
	var err error
	if n.Spec, err = resolve(r, spec); err != nil {
		return nil, err
	}
	if onlyStopped(old, &n) {
		return stoppedOrStarted(&n), nil
	}
	n.JobStatus = nextIteration(old, &n, now)
	switch {
	case o.RegistryAuth != "":
		n.RegistryAuth = o.RegistryAuth
	case o.RegistryAuthFrom == "previous-spec":
		n.RegistryAuth = old.PreviousRegistryAuth
	}
	changed := !n.TaskSpec().Equal(old.TaskSpec())
	if n.RegistryAuth != old.RegistryAuth || !sameSpec(&n.Spec, &old.Spec) {
		succeed(&n, old, now)
		if !changed {
			keepWayBack(&n, old)
		}
	}
	if changed {
		n.SpecVersion = max(old.SpecVersion, old.PreviousSpecVersion, old.Version.Index) + 1
	}
	// An update that is under way goes on after a change that is none of its
	// business; one that was paused is taken up again.
	if st := old.UpdateStatus; changed || st == nil || st.State != swarm.UpdateStateUpdating && st.State != swarm.UpdateStateRollbackStarted {
		n.UpdateStatus = nil
	}
	return &n, nil
}

// rolledBack is the service with its spec and its previous one changed over.
func rolledBack(r store.Reader, old *api.Service, now time.Time) (*api.Service, error) {
	if old.PreviousSpec == nil {
		return nil, invalid("service %s does not have a previous spec", old.Spec.Name)
	}
	if _, err := resolve(r, old.PreviousSpec); err != nil {
		return nil, err
	}
	n := old.Rollback()
	succeed(n, old, now)
	n.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, Message: "manually requested rollback", StartedAt: began(r, old.ID, now)}
	if n.Job() {
		n.UpdateStatus, n.JobStatus = nil, nextIteration(old, n, now)
	}
	return n, nil
}

// began is when what is done to a service now began: after all its tasks were made, also if
// a clock was set back since. What they did before is not to count against it.
func began(r store.Reader, service string, now time.Time) *time.Time {
	for t := range store.List[*api.Task](r, store.ByService(service)) {
		if t.CreatedAt.After(now) {
			now = t.CreatedAt.Add(1)
		}
	}
	return &now
}

func mode(s *swarm.ServiceSpec) string {
	switch {
	case s.Mode.Global != nil:
		return "global"
	case s.Mode.ReplicatedJob != nil:
		return "replicated-job"
	case s.Mode.GlobalJob != nil:
		return "global-job"
	}
	return "replicated"
}

// ServiceRemove removes a service; its tasks are then ended.
func (c *Control) ServiceRemove(ctx context.Context, name string) error {
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		s, err := c.service(tx, name)
		if err != nil {
			return err
		}
		if err := orchestrator.Forget(tx, s.ID); err != nil {
			return err
		}
		return store.Delete[*api.Service](tx, s.ID)
	})
	return err
}

// ServiceInspect returns a service; with defaults, what the user did not say is
// filled in.
func (c *Control) ServiceInspect(_ context.Context, name string, defaults bool) (*swarm.Service, error) {
	view := c.cfg.Store.View()
	s, err := c.service(view, name)
	if err != nil {
		return nil, err
	}
	out := s.Service
	out.UpdateStatus = progress(view, s, c.cfg.Store.Now())
	if defaults {
		out.Spec = withDefaults(out.Spec)
	}
	return &out, nil
}

// ServiceList returns the services that the filters let through, by name.
func (c *Control) ServiceList(_ context.Context, f api.Filters, status bool) ([]swarm.Service, error) {
	if err := checkFilters(f, "id", "label", "mode", "name", "runtime"); err != nil {
		return nil, err
	}
	view := c.cfg.Store.View()
	out := make([]swarm.Service, 0, store.Count[*api.Service](view))
	for s := range store.List[*api.Service](view) {
		if anyPrefix(f["id"], s.ID) && anyPrefix(f["name"], s.Spec.Name) && matchLabels(f["label"], s.Spec.Labels) &&
			(len(f["mode"]) == 0 || slices.Contains(f["mode"], mode(&s.Spec))) &&
			(len(f["runtime"]) == 0 || slices.Contains(f["runtime"], runtime(&s.Spec))) {
			out = append(out, s.Service)
		}
	}
	if status {
		fillStatus(view, out)
	}
	return out, nil
}

func runtime(s *swarm.ServiceSpec) string {
	if s.TaskTemplate.Runtime == "" {
		return string(swarm.RuntimeContainer)
	}
	return string(s.TaskTemplate.Runtime)
}
