package dispatcher

import (
	"context"
	"reflect"
	"slices"
	"time"

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
	for chunk := range slices.Chunk(updates, maxChunk) {
		now := d.cfg.Store.Now()
		err := d.writer.do(ctx, func(tx *store.Tx) error {
			if !s.live() {
				return s.cause
			}
			return apply(tx, s.node, chunk, now)
		})
		if err != nil {
			return nil, err
		}
	}
	return &swarmpb.UpdateTaskStatusResponse{}, nil
}

// statusUpdate is a task's new status.
type statusUpdate struct {
	task   string
	status *swarm.TaskStatus
}

// intake checks statuses before they wait for a transaction, and leaves out what
// would change nothing.
func (d *Dispatcher) intake(node string, in []*swarmpb.UpdateTaskStatusRequest_TaskStatusUpdate) ([]statusUpdate, error) {
	view := d.cfg.Store.View()
	var out []statusUpdate
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
		if n := len(status.PortStatus.Ports); n > maxPorts {
			return nil, api.Errorf(api.Invalid, "task %s: a status with %d ports; at most %d are accepted", t.ID, n, maxPorts)
		}
		status.Message, status.Err = cut(status.Message), cut(status.Err)
		if advances(&t.Status, status) {
			out = append(out, statusUpdate{t.ID, status})
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

// apply writes the statuses. Of several for a task the last one stays.
func apply(tx *store.Tx, node string, updates []statusUpdate, now time.Time) error {
	var changed []*api.Task
	for _, u := range updates {
		old := store.Get[*api.Task](tx, u.task)
		if old == nil || !advances(&old.Status, u.status) {
			continue
		}
		if old.NodeID != node {
			return errNotYours(u.task, node)
		}
		t := *old
		t.Status = *u.status
		if old.Status.State == swarm.TaskStateRunning && t.Status.State == swarm.TaskStateFailed {
			t.UpdatedAt = now
			t.Ran = max(t.Since().Sub(old.Since()), 0)
		}
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
