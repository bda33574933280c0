package agent

import (
	"context"
	"sync"

	"github.com/moby/moby/api/types/swarm"
)

// maxReport bounds how many statuses go in one message.
const maxReport = 1000

type taskStatus struct {
	id     string
	status *swarm.TaskStatus
}

// reporter keeps the statuses that no manager has acknowledged: the last one of
// each task, for as long as it takes. Safe for concurrent use.
type reporter struct {
	wake chan struct{}

	mu      sync.Mutex
	pending map[string]*swarm.TaskStatus
	order   []string // ids in pending, longest first; may have ids that are gone
}

func newReporter() *reporter {
	return &reporter{wake: make(chan struct{}, 1), pending: map[string]*swarm.TaskStatus{}}
}

// put notes a task's new status. The caller must not change it any more.
func (r *reporter) put(id string, s *swarm.TaskStatus) {
	r.mu.Lock()
	if _, ok := r.pending[id]; !ok {
		r.order = append(r.order, id)
	}
	r.pending[id] = s
	r.mu.Unlock()
	r.poke()
}

// forget drops what is not yet reported of a task that the managers don't know
// any more.
func (r *reporter) forget(id string) {
	r.mu.Lock()
	delete(r.pending, id)
	r.mu.Unlock()
}

func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) batch() []taskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var batch []taskStatus
	kept := r.order[:0]
	seen := map[string]bool{}
	for _, id := range r.order {
		s, ok := r.pending[id]
		if !ok || seen[id] {
			continue
		}
		seen[id] = true
		kept = append(kept, id)
		if len(batch) < maxReport {
			batch = append(batch, taskStatus{id, s})
		}
	}
	r.order = kept
	return batch
}

// acknowledged drops those of the batch that have not changed since.
func (r *reporter) acknowledged(batch []taskStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batch {
		if r.pending[b.id] == b.status {
			delete(r.pending, b.id)
		}
	}
}

// run sends what is pending, one batch at a time, until sending fails or ctx
// ends.
func (r *reporter) run(ctx context.Context, send func(context.Context, []taskStatus) error) error {
	for {
		batch := r.batch()
		if len(batch) == 0 {
			select {
			case <-r.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := send(ctx, batch); err != nil {
			return err
		}
		r.acknowledged(batch)
	}
}
