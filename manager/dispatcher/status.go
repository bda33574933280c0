package dispatcher

import (
	"context"
	"reflect"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// UpdateTaskStatus implements the Dispatcher service: it returns when the
// statuses are committed. Those of tasks that are gone, or that would go back,
// are dropped; one of another node's task refuses the whole call.
func (d *Dispatcher) UpdateTaskStatus(ctx context.Context, req *swarmpb.UpdateTaskStatusRequest) (*swarmpb.UpdateTaskStatusResponse, error) {
	s, err := d.current(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	select {
	case s.reports <- struct{}{}:
		defer func() { <-s.reports }()
	default:
		return nil, api.Errorf(api.ResourceExhausted, "node %s has %d status reports under way; it should wait for their answers", s.node, maxReports)
	}
	updates, err := d.intake(s.node, req.GetUpdates())
	if err != nil || len(updates) == 0 {
		return &swarmpb.UpdateTaskStatusResponse{}, err
	}
	err = d.writer.do(ctx, func(tx *store.Tx) error {
		if !s.live() {
			return s.cause
		}
		return apply(tx, s.node, updates)
	})
	if err != nil {
		return nil, err
	}
	return &swarmpb.UpdateTaskStatusResponse{}, nil
}

// intake checks statuses before they wait for a transaction, and leaves out what
// would change nothing.
func (d *Dispatcher) intake(node string, in []*swarmpb.UpdateTaskStatusRequest_TaskStatusUpdate) (map[string]*swarm.TaskStatus, error) {
	view := d.cfg.Store.View()
	out := make(map[string]*swarm.TaskStatus, len(in))
	for _, u := range in {
		if u.GetTaskId() == "" || u.GetStatus() == nil {
			return nil, api.Errorf(api.Invalid, "task status without task id or status")
		}
		t := store.Get[*api.Task](view, u.GetTaskId())
		if t == nil {
			continue
		}
		if t.NodeID != node {
			return nil, errNotYours(t.ID, node)
		}
		status := u.GetStatus().API()
		rank := api.Rank(status.State)
		if rank < api.Rank(swarm.TaskStateAssigned) || rank > api.Rank(swarm.TaskStateRejected) {
			return nil, api.Errorf(api.Invalid, "task %s: a node can't report the state %d", t.ID, u.GetStatus().GetState())
		}
		status.Message, status.Err = cut(status.Message), cut(status.Err)
		if advances(&t.Status, status) {
			out[t.ID] = status
		}
	}
	return out, nil
}

func errNotYours(task, node string) error {
	return api.Errorf(api.PermissionDenied, "task %s is not assigned to node %s", task, node)
}

func cut(s string) string {
	if len(s) > maxText {
		return s[:maxText-3] + "..."
	}
	return s
}

// advances reports whether a task may go from one status to the other: states
// only move forward, what has ended stays as it is, and nothing is written twice.
func advances(from, to *swarm.TaskStatus) bool {
	if api.Final(from.State) || api.Rank(to.State) < api.Rank(from.State) {
		return false
	}
	return !reflect.DeepEqual(from, to)
}

func apply(tx *store.Tx, node string, updates map[string]*swarm.TaskStatus) error {
	var changed []*api.Task
	for id, status := range updates {
		old := store.Get[*api.Task](tx, id)
		if old == nil || !advances(&old.Status, status) {
			continue
		}
		if old.NodeID != node {
			return errNotYours(id, node)
		}
		t := *old
		t.Status = *status
		changed = append(changed, &t)
	}
	for _, t := range changed {
		if err := store.Put(tx, t); err != nil {
			return err
		}
	}
	return nil
}

// UpdateVolumeStatus implements the Dispatcher service. There are no cluster
// volumes, so there is nothing that could be unpublished.
func (d *Dispatcher) UpdateVolumeStatus(ctx context.Context, req *swarmpb.UpdateVolumeStatusRequest) (*swarmpb.UpdateVolumeStatusResponse, error) {
	if _, err := d.current(ctx, req.GetSessionId()); err != nil {
		return nil, err
	}
	return &swarmpb.UpdateVolumeStatusResponse{}, nil
}
