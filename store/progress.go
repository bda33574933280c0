package store

import (
	"context"
	"sync"
	"time"
)

// Progress shows whether a loop gets on: one that has taken changes from its
// Watcher and then neither asks for more nor writes anything hangs. What waits
// for changes, or for the log, does not. Safe for concurrent use; the zero value
// is ready. A loop that never takes changes is never busy.
type Progress struct {
	mu      sync.Mutex
	waiting int       // calls of Next and proposals under way
	took    time.Time // when changes were last taken or something was written; zero: before the first
}

type progressKey struct{}

// WithProgress returns a context for a loop: its calls of Next and Update are
// noted in p.
func WithProgress(ctx context.Context, p *Progress) context.Context {
	return context.WithValue(ctx, progressKey{}, p)
}

// Busy returns for how long the loop has been at work on changes that it took.
func (p *Progress) Busy(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting > 0 || p.took.IsZero() {
		return 0
	}
	return now.Sub(p.took)
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
		if took || !p.took.IsZero() {
			p.took = time.Now()
		}
		p.mu.Unlock()
	}
}
