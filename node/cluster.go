package node

import (
	"context"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/store"
)

// cluster serves the swarm's objects through the manager that this node is; on
// any other node every call answers as Docker does there.
type cluster struct{ swarm *swarmNode }

var _ dockerapi.Cluster = cluster{}

// read calls fn with the manager's control, once that shows what all managers
// agree on.
func read[T any](ctx context.Context, c cluster, fn func(*control.Control) (T, error)) (T, error) {
	p, err := c.swarm.leading()
	if err != nil {
		var none T
		return none, err
	}
	p.fresh(ctx)
	return fn(p.control)
}

// write calls fn with the manager's control. What it changes must be as new as
// what the caller may have heard from another manager.
func write[T any](ctx context.Context, c cluster, fn func(*control.Control) (T, error)) (T, error) {
	var none T
	p, err := c.swarm.leading()
	if err != nil {
		return none, err
	}
	if !p.raft.Status().IsLeader {
		if err := p.caughtUp(ctx, writeTimeout); err != nil {
			return none, p.explain(err)
		}
	}
	out, err := fn(p.control)
	return out, p.explain(err)
}

// writeAhead is write for a change that is one store.Update, with the context that
// fn is given: it asks the leader how far the log is only if that matters.
func writeAhead[T any](ctx context.Context, c cluster, fn func(context.Context, *control.Control) (T, error)) (T, error) {
	p, err := c.swarm.leading()
	if err != nil {
		var none T
		return none, err
	}
	st := p.raft.Status()
	if st.Leader == 0 || !st.IsLeader && !p.mesh.Reachable(st.Leader) { // to say so is certain
		return write(ctx, c, func(m *control.Control) (T, error) { return fn(ctx, m) })
	}
	if !st.IsLeader {
		ctx = store.Lagging(ctx, func(ctx context.Context) error { return p.caughtUp(ctx, writeTimeout) })
	}
	out, err := fn(ctx, p.control)
	return out, p.explain(err)
}

// do is write for calls that return an error only.
func do(ctx context.Context, c cluster, fn func(*control.Control) error) error {
	_, err := write(ctx, c, func(m *control.Control) (struct{}, error) { return struct{}{}, fn(m) })
	return err
}

func options(o dockerapi.ServiceOptions) control.ServiceOptions {
	return control.ServiceOptions{RegistryAuth: o.RegistryAuth, RegistryAuthFrom: o.RegistryAuthFrom, Rollback: o.Rollback}
}

func (c cluster) NodeList(ctx context.Context, f api.Filters) ([]swarm.Node, error) {
	return read(ctx, c, func(m *control.Control) ([]swarm.Node, error) { return m.NodeList(ctx, f) })
}

func (c cluster) NodeInspect(ctx context.Context, name string) (*swarm.Node, error) {
	return read(ctx, c, func(m *control.Control) (*swarm.Node, error) { return m.NodeInspect(ctx, name) })
}

func (c cluster) NodeUpdate(ctx context.Context, id string, version uint64, s *swarm.NodeSpec) error {
	return do(ctx, c, func(m *control.Control) error { return m.NodeUpdate(ctx, id, version, s) })
}

func (c cluster) NodeRemove(ctx context.Context, name string, force bool) error {
	return do(ctx, c, func(m *control.Control) error { return m.NodeRemove(ctx, name, force) })
}

func (c cluster) ServiceList(ctx context.Context, f api.Filters, status bool) ([]swarm.Service, error) {
	return read(ctx, c, func(m *control.Control) ([]swarm.Service, error) { return m.ServiceList(ctx, f, status) })
}

func (c cluster) ServiceInspect(ctx context.Context, name string, defaults bool) (*swarm.Service, error) {
	return read(ctx, c, func(m *control.Control) (*swarm.Service, error) { return m.ServiceInspect(ctx, name, defaults) })
}

func (c cluster) ServiceCreate(ctx context.Context, s *swarm.ServiceSpec, o dockerapi.ServiceOptions) (*swarm.ServiceCreateResponse, error) {
	return writeAhead(ctx, c, func(ctx context.Context, m *control.Control) (*swarm.ServiceCreateResponse, error) {
		return m.ServiceCreate(ctx, control.Complete(s), options(o))
	})
}

func (c cluster) ServiceUpdate(ctx context.Context, name string, version uint64, s *swarm.ServiceSpec, o dockerapi.ServiceOptions) (*swarm.ServiceUpdateResponse, error) {
	return write(ctx, c, func(m *control.Control) (*swarm.ServiceUpdateResponse, error) {
		return m.ServiceUpdate(ctx, name, version, control.Complete(s), options(o))
	})
}

func (c cluster) ServiceHistory(ctx context.Context, name string) ([]api.VersionInfo, error) {
	return read(ctx, c, func(m *control.Control) ([]api.VersionInfo, error) { return m.ServiceHistory(ctx, name) })
}

func (c cluster) ServiceRollback(ctx context.Context, name string, to uint64) error {
	return do(ctx, c, func(m *control.Control) error { return m.ServiceRollback(ctx, name, to) })
}

func (c cluster) ServicePromote(ctx context.Context, name string) error {
	return do(ctx, c, func(m *control.Control) error { return m.ServicePromote(ctx, name) })
}

func (c cluster) ServicePlan(ctx context.Context, name string, s *swarm.ServiceSpec) (*api.ServicePlan, error) {
	return read(ctx, c, func(m *control.Control) (*api.ServicePlan, error) {
		return m.ServicePlan(ctx, name, control.Complete(s))
	})
}

func (c cluster) ServiceRemove(ctx context.Context, name string) error {
	return do(ctx, c, func(m *control.Control) error { return m.ServiceRemove(ctx, name) })
}

func (c cluster) TaskList(ctx context.Context, f api.Filters) ([]swarm.Task, error) {
	return read(ctx, c, func(m *control.Control) ([]swarm.Task, error) { return m.TaskList(ctx, f) })
}

func (c cluster) TaskInspect(ctx context.Context, id string) (*swarm.Task, error) {
	return read(ctx, c, func(m *control.Control) (*swarm.Task, error) { return m.TaskInspect(ctx, id) })
}

func (c cluster) SecretList(ctx context.Context, f api.Filters) ([]swarm.Secret, error) {
	return read(ctx, c, func(m *control.Control) ([]swarm.Secret, error) { return m.SecretList(ctx, f) })
}

func (c cluster) SecretInspect(ctx context.Context, name string) (*swarm.Secret, error) {
	return read(ctx, c, func(m *control.Control) (*swarm.Secret, error) { return m.SecretInspect(ctx, name) })
}

func (c cluster) SecretCreate(ctx context.Context, s *swarm.SecretSpec) (string, error) {
	return write(ctx, c, func(m *control.Control) (string, error) { return m.SecretCreate(ctx, s) })
}

func (c cluster) SecretUpdate(ctx context.Context, name string, version uint64, s *swarm.SecretSpec) error {
	return do(ctx, c, func(m *control.Control) error { return m.SecretUpdate(ctx, name, version, s) })
}

func (c cluster) SecretRemove(ctx context.Context, name string) error {
	return do(ctx, c, func(m *control.Control) error { return m.SecretRemove(ctx, name) })
}

func (c cluster) ConfigList(ctx context.Context, f api.Filters) ([]swarm.Config, error) {
	return read(ctx, c, func(m *control.Control) ([]swarm.Config, error) { return m.ConfigList(ctx, f) })
}

func (c cluster) ConfigInspect(ctx context.Context, name string) (*swarm.Config, error) {
	return read(ctx, c, func(m *control.Control) (*swarm.Config, error) { return m.ConfigInspect(ctx, name) })
}

func (c cluster) ConfigCreate(ctx context.Context, s *swarm.ConfigSpec) (string, error) {
	return write(ctx, c, func(m *control.Control) (string, error) { return m.ConfigCreate(ctx, s) })
}

func (c cluster) ConfigUpdate(ctx context.Context, name string, version uint64, s *swarm.ConfigSpec) error {
	return do(ctx, c, func(m *control.Control) error { return m.ConfigUpdate(ctx, name, version, s) })
}

func (c cluster) ConfigRemove(ctx context.Context, name string) error {
	return do(ctx, c, func(m *control.Control) error { return m.ConfigRemove(ctx, name) })
}
