package dispatcher

import (
	"context"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

const (
	maxBatch    = 128 // writes in one transaction
	maxInFlight = 4   // transactions being committed at once
	writeQueue  = 4096
)

// writer gathers writes while earlier ones are being committed, so that many
// nodes cost few transactions and one alone does not wait.
type writer struct {
	store *store.Store
	queue chan *write
}

// write is one caller's part of a transaction.
type write struct {
	ctx  context.Context //nolint:containedctx // the caller's
	fn   func(tx *store.Tx) error
	err  error
	done chan struct{}
}

func newWriter(s *store.Store) *writer {
	return &writer{store: s, queue: make(chan *write, writeQueue)}
}

// do writes what fn puts in the transaction, and returns when that is committed.
// fn may run several times; when it returns an error it must not have written.
func (w *writer) do(ctx context.Context, fn func(tx *store.Tx) error) error {
	item := &write{ctx: ctx, fn: fn, done: make(chan struct{})}
	select {
	case w.queue <- item:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-item.done:
		return item.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run commits until ctx ends.
func (w *writer) run(ctx context.Context) error {
	slots := make(chan struct{}, maxInFlight)
	defer func() {
		for range maxInFlight { // wait for those under way
			slots <- struct{}{}
		}
		w.refuse()
	}()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		batch := w.gather(ctx)
		if batch == nil {
			<-slots
			return ctx.Err()
		}
		go func() {
			defer func() { <-slots }()
			w.commit(ctx, batch)
		}()
	}
}

func (w *writer) gather(ctx context.Context) []*write {
	var batch []*write
	select {
	case item := <-w.queue:
		batch = append(batch, item)
	case <-ctx.Done():
		return nil
	}
	for len(batch) < maxBatch {
		select {
		case item := <-w.queue:
			batch = append(batch, item)
		default:
			return batch
		}
	}
	return batch
}

func (w *writer) commit(ctx context.Context, batch []*write) {
	_, err := w.store.Update(ctx, func(tx *store.Tx) error {
		for _, item := range batch {
			if item.err = item.ctx.Err(); item.err == nil {
				item.err = item.fn(tx)
			}
		}
		return nil
	})
	for _, item := range batch {
		if err != nil {
			item.err = err
		}
		close(item.done)
	}
}

// refuse answers what is left in the queue.
func (w *writer) refuse() {
	for {
		select {
		case item := <-w.queue:
			item.err = api.Errorf(api.Unavailable, "the manager is stopping")
			close(item.done)
		default:
			return
		}
	}
}
