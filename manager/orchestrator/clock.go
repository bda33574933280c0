package orchestrator

import (
	"time"

	"github.com/legion-swarm/legion/api"
)

// A plan compares stored times with the wall clock of whoever leads. That may be set
// back, by an hour or by years, and the next leader's may be behind: what was to take a
// second must not take that long. So no wait is longer than it was meant to be, and
// the order of tasks does not depend on the time of day.

// skew is how far the clocks of two managers may differ without either being wrong.
const skew = time.Second

// waits reports whether a wait for so long that ends at a time is not over. One
// that has longer to go began before a clock was set back, and counts as over.
func (p *plan) waits(end time.Time, long time.Duration) bool {
	left := end.Sub(p.Now)
	return left > 0 && left <= long+skew
}

// early reports whether a task has to wait before it may start.
func (p *plan) early(t *api.Task) bool {
	long := t.NotBefore.Sub(t.CreatedAt)
	if long < 0 {
		long = maxRejection // CreatedAt is its place in the order
	}
	return p.waits(t.NotBefore, long)
}

// sequel is a time for what comes after these tasks, and after the update under way
// began: now, if clocks only go forward.
func (p *plan) sequel(tasks []*api.Task) time.Time {
	at := p.Now
	if p.started.After(at) {
		at = p.started
	}
	for _, t := range tasks {
		if t.CreatedAt.After(at) {
			at = t.CreatedAt.Add(1)
		}
	}
	return at
}
