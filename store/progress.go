package store

import (
	"context"
	"sync"
)

// Progress shows whether a loop gets on: one that has taken changes from its
// Watcher and then neither asks for more nor writes anything hangs. What waits
// for changes, or for the log, does not. Safe for concurrent use; the zero value
// is ready. A loop that never takes changes is never busy.
type Progress struct {
	mu      sync.Mutex
	waiting int    // calls of Next and proposals under way
	steps   uint64 // how often changes were taken, or written after that
}

type progressKey struct{}

// WithProgress returns a context for a loop: its calls of Next and Update are
// noted in p.
func WithProgress(ctx context.Context, p *Progress) context.Context {
	return context.WithValue(ctx, progressKey{}, p)
}

// Busy reports whether the loop is at work on changes that it took, and a number
// that grows with each step that it makes.
func (p *Progress) Busy() (step uint64, busy bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.steps, p.waiting == 0 && p.steps > 0
}

// waits notes that the loop waits for something, until the function returned is
// called; took: from then on it is at work.
func waits(ctx context.Context, took bool) (ended func()) {
	p, ok := ctx.Value(progressKey{}).(*Progress)
	if !ok {
		return func() {}
	}
	p.mu.Lock()
	p.waiting++
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		p.waiting--
		if took || p.steps > 0 {
			p.steps++
		}
		p.mu.Unlock()
	}
}
