package store

import (
	"context"
	"time"
)

// Whoever waits for changes is woken at once, unless it was woken thickAfter times
// in a row without a thickGap between: then it is left to sleep for a thickGap
// more. To wake all watchers for each of a thousand small entries a second takes
// a fifteenth of the processor's time of all that is done for one.
const (
	thickGap   = 4 * time.Millisecond
	thickAfter = 16
)

// pace is how often a watcher was woken lately.
type pace struct {
	last   time.Time
	streak int // without a thickGap between
}

// woken waits for more where changes come thick, or until ctx ends.
func (p *pace) woken(ctx context.Context) {
	if time.Since(p.last) > thickGap {
		p.streak = 0
	}
	if p.streak++; p.streak > thickAfter {
		_ = wait(ctx, thickGap) // what is there is told in either case
	}
	p.last = time.Now()
}
