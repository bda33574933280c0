package traffic

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Pace is how much load there is.
type Pace struct {
	// Clients work side by side. Zero: 1.
	Clients int
	// Rate is requests a second of all clients together; one that is late goes on
	// at once. Zero: as fast as they can.
	Rate float64
	// Count of requests after which it is over. Zero: when the context is done.
	Count int
	// Timeout of each step of a request. Zero: 3 s.
	Timeout time.Duration
}

const defaultTimeout = 3 * time.Second

func (p Pace) timeout() time.Duration {
	if p.Timeout == 0 {
		return defaultTimeout
	}
	return p.Timeout
}

// run has each client do its requests, until it is over. Those under way then
// come to their end.
func (p Pace) run(ctx context.Context, client func(n int, next func() bool)) {
	p.Clients = max(p.Clients, 1)
	var begun atomic.Int64
	var wait sync.WaitGroup
	start := time.Now()
	for n := range p.Clients {
		wait.Go(func() {
			turn := n
			client(n, func() bool {
				if p.Rate > 0 {
					due := start.Add(time.Duration(float64(turn) / p.Rate * float64(time.Second)))
					turn += p.Clients
					if !until(ctx, due) {
						return false
					}
				}
				return ctx.Err() == nil && (p.Count == 0 || begun.Add(1) <= int64(p.Count))
			})
		})
	}
	wait.Wait()
}

// until reports whether the time came before the end.
func until(ctx context.Context, due time.Time) bool {
	d := time.Until(due)
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
