package node

import (
	"context"
	"errors"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/manager/dispatcher"
)

// ServiceLogs reads the logs of all tasks of a service, wherever they run.
func (c cluster) ServiceLogs(ctx context.Context, name string, o engine.LogsOptions, fn func(dockerapi.TaskLog) error) (tty bool, err error) {
	r, err := c.swarm.leading()
	if err != nil {
		return false, err
	}
	r.fresh(ctx)
	s, err := r.control.ServiceInspect(ctx, name, false)
	if err != nil {
		return false, err
	}
	return terminal(&s.Spec.TaskTemplate), relay(ctx, r.disp, dispatcher.LogSelector{ServiceIDs: []string{s.ID}}, o, fn)
}

// TaskLogs reads the logs of one task.
func (c cluster) TaskLogs(ctx context.Context, id string, o engine.LogsOptions, fn func(dockerapi.TaskLog) error) (tty bool, err error) {
	r, err := c.swarm.leading()
	if err != nil {
		return false, err
	}
	r.fresh(ctx)
	t, err := r.control.TaskInspect(ctx, id)
	if err != nil {
		return false, err
	}
	return terminal(&t.Spec), relay(ctx, r.disp, dispatcher.LogSelector{TaskIDs: []string{t.ID}}, o, fn)
}

func terminal(s *swarm.TaskSpec) bool { return s.ContainerSpec != nil && s.ContainerSpec.TTY }

// errPast ends following at a time that was asked for.
var errPast = errors.New("the time asked for has come")

func relay(ctx context.Context, d *dispatcher.Dispatcher, sel dispatcher.LogSelector, o engine.LogsOptions, fn func(dockerapi.TaskLog) error) error {
	opts := dispatcher.LogOptions{Stdout: o.Stdout, Stderr: o.Stderr, Follow: o.Follow, Tail: o.Tail, Since: o.Since}
	read := ctx
	if o.Follow && !o.Until.IsZero() {
		var cancel context.CancelFunc
		read, cancel = context.WithDeadlineCause(ctx, o.Until, errPast)
		defer cancel()
	}
	err := d.Logs().Logs(read, sel, opts, func(m dispatcher.LogMessage) error {
		if !o.Until.IsZero() && m.At.After(o.Until) {
			return nil
		}
		return fn(dockerapi.TaskLog{
			NodeID: m.NodeID, ServiceID: m.ServiceID, TaskID: m.TaskID, Note: m.Note,
			LogMessage: engine.LogMessage{Source: m.Stream, At: m.At, Line: m.Data, Attrs: m.Attrs},
		})
	})
	if errors.Is(context.Cause(read), errPast) && ctx.Err() == nil {
		return nil
	}
	return err
}
