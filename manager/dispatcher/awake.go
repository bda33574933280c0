package dispatcher

import (
	"context"
	"sync"
	"time"
)

const (
	// pulse is how often this process notes that it is at work.
	pulse = 250 * time.Millisecond
	// stall is how late that may be before the process is taken to have stood still.
	stall = 250 * time.Millisecond
)

// awake counts for how long this process stood still: it was stopped, its machine was
// paused, or it did not get a processor. What it did not hear in that time was perhaps
// said. Safe for concurrent use.
type awake struct {
	mu    sync.Mutex
	at    time.Time     // when it was last noted that the process is at work; zero: never
	still time.Duration // before that
}

// note says that the process is at work.
func (a *awake) note(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.still += a.late(now)
	a.at = now
}

// stood is for how long the process stood still in all, also if it is about to find out.
func (a *awake) stood(now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.still + a.late(now)
}

func (a *awake) late(now time.Time) time.Duration {
	if late := now.Sub(a.at) - pulse; !a.at.IsZero() && late > stall {
		return late
	}
	return 0
}

// run notes that the process is at work, until ctx ends.
func (a *awake) run(ctx context.Context) error {
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	for {
		a.note(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
