package store

import (
	"context"
	"errors"
	"slices"
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
	pace  pace          // of Next

	mu       sync.Mutex
	pending  [][]Change // an entry's each; shared by watchers, so nobody changes them
	count    int        // of changes in them
	after    *View      // has them all; nil without any
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
func (w *Watcher) add(v *View, changes []Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.overflow {
		return
	}
	if changes = w.of(changes); len(changes) == 0 {
		return
	}
	w.pending, w.count, w.after = append(w.pending, changes), w.count+len(changes), v
	if w.count > w.limit {
		w.drop()
	}
	w.wake()
}

// of returns the changes of the watcher's kinds.
func (w *Watcher) of(changes []Change) []Change {
	other := func(c Change) bool { return !w.kinds[c.Kind] }
	if !slices.ContainsFunc(changes, other) {
		return changes
	}
	var own []Change
	for i := range changes {
		if !other(changes[i]) {
			own = append(own, changes[i])
		}
	}
	return own
}

// drop has the watcher start over. Callers hold w.mu.
func (w *Watcher) drop() { w.pending, w.count, w.after, w.overflow = nil, 0, nil, true }

func (w *Watcher) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Next waits for changes and returns all that there are, in order; they must not
// be changed. ErrOverflow is final; otherwise the error is ctx's.
func (w *Watcher) Next(ctx context.Context) ([]Change, error) {
	changes, _, err := w.NextView(ctx)
	return changes, err
}

// NextView is Next, and returns the view that has these changes and none of the
// watcher's kinds after them.
func (w *Watcher) NextView(ctx context.Context) ([]Change, *View, error) {
	defer waits(ctx, true)()
	for {
		w.mu.Lock()
		pending, view, overflow := w.pending, w.after, w.overflow
		w.pending, w.count, w.after = nil, 0, nil
		w.mu.Unlock()
		switch {
		case overflow:
			return nil, nil, ErrOverflow
		case len(pending) == 1:
			return pending[0], view, nil
		case len(pending) > 1:
			return slices.Concat(pending...), view, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-w.ready:
			w.pace.woken(ctx)
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
		w.drop()
		w.mu.Unlock()
		w.wake()
	}
}
