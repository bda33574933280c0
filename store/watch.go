package store

import (
	"context"
	"errors"
	"sync"
)

// ErrOverflow says that a watcher fell too far behind, or that the whole store
// was replaced: start over with Watch.
var ErrOverflow = errors.New("store: watcher overflowed")

// Change is what happened to an object. Old and New point to objects of
// package api; Old is nil for a new object, New for one that was deleted.
type Change struct {
	Kind  Kind
	ID    string
	Old   any
	New   any
	Index uint64
}

// Watcher collects changes until they are asked for. Next is for one goroutine.
type Watcher struct {
	store *Store
	kinds [kinds + 1]bool
	limit int
	ready chan struct{} // capacity 1

	mu       sync.Mutex
	pending  []Change
	overflow bool
}

// Watch returns the newest view and a watcher for what happens after it, of
// the kinds given (none: all). The watcher must be closed.
func (s *Store) Watch(kinds ...Kind) (*View, *Watcher) {
	w := &Watcher{store: s, limit: s.watchLimit, ready: make(chan struct{}, 1)}
	for k := KindCluster; k.valid(); k++ {
		w.kinds[k] = len(kinds) == 0
	}
	for _, k := range kinds {
		w.kinds[k] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[w] = struct{}{}
	return s.View(), w
}

// add never blocks.
func (w *Watcher) add(changes []Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.overflow {
		return
	}
	n := len(w.pending)
	for i := range changes {
		if w.kinds[changes[i].Kind] {
			w.pending = append(w.pending, changes[i])
		}
	}
	switch {
	case len(w.pending) > w.limit:
		w.pending, w.overflow = nil, true
	case len(w.pending) == n:
		return
	}
	w.wake()
}

func (w *Watcher) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Next waits for changes and returns all that there are, in order. ErrOverflow
// is final; otherwise the error is ctx's.
func (w *Watcher) Next(ctx context.Context) ([]Change, error) {
	defer waits(ctx, true)()
	for {
		w.mu.Lock()
		changes, overflow := w.pending, w.overflow
		w.pending = nil
		w.mu.Unlock()
		switch {
		case overflow:
			return nil, ErrOverflow
		case len(changes) > 0:
			return changes, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.ready:
		}
	}
}

// Close ends the watch. What is pending is dropped.
func (w *Watcher) Close() {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.watchers, w)
}

// fail makes all watchers start over. Callers hold mu.
func (s *Store) failWatchers() {
	for w := range s.watchers {
		w.mu.Lock()
		w.pending, w.overflow = nil, true
		w.mu.Unlock()
		w.wake()
	}
}
