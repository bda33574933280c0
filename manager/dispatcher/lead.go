package dispatcher

import (
	"context"
	"sync"
	"time"

	"github.com/legion-swarm/legion/api"
)

const (
	// unledLimit is how long a manager without leader keeps its sessions: an
	// election is over long before.
	unledLimit = 4 * time.Second
	// searchPause is how long an agent that finds no manager pauses at most before it
	// tries again (see design/presence.md).
	searchPause = 8 * time.Second
)

// leadership is since when some manager leads or none does, as seen from here. The zero
// value has nobody lead.
type leadership struct {
	mu     sync.Mutex
	led    bool
	since  time.Time
	absent time.Duration // how long nobody led before, when somebody does
}

// note takes what is now.
func (l *leadership) note(led bool, now time.Time) {
	if l.since.IsZero() {
		l.since = now
	}
	if led == l.led {
		return
	}
	if led {
		l.absent = now.Sub(l.since)
	}
	l.led, l.since = led, now
}

// back is from when on a node that lives should have found a manager that takes it:
// agents pause the longer the longer there was none.
func (l *leadership) back() time.Time {
	return l.since.Add(min(l.absent, searchPause) + comeback)
}

// lead tells whether some manager leads, since when that is so, and from when on absent
// nodes have had the time to come back. The channel is closed when it may have changed.
func (d *Dispatcher) lead() (led bool, since, back time.Time, changed <-chan struct{}) {
	d.leads.mu.Lock()
	defer d.leads.mu.Unlock()
	led, changed = d.cfg.Led()
	d.leads.note(led, time.Now())
	return led, d.leads.since, d.leads.back(), changed
}

// hearing waits until some manager leads, and has for long enough that nodes which live
// have a session: while none does, nobody can take them, and that they have no other
// session says nothing. False: ctx ended before.
func (d *Dispatcher) hearing(ctx context.Context) bool {
	for ctx.Err() == nil {
		led, _, back, changed := d.lead()
		left := time.Until(back)
		if led && left <= 0 {
			return true
		}
		var over <-chan time.Time
		if led {
			over = time.After(left)
		}
		select {
		case <-changed:
		case <-over:
		case <-ctx.Done():
		}
	}
	return false
}

// guardLead ends all sessions when no manager has led for long: this one may be
// cut off from the others, and its nodes not.
func (d *Dispatcher) guardLead(ctx context.Context) error {
	timer := time.NewTimer(unledLimit)
	defer timer.Stop()
	for given := false; ; {
		led, since, _, changed := d.lead()
		switch left := unledLimit - time.Since(since); {
		case led:
			given = false
			timer.Stop()
		case left > 0:
			timer.Reset(left)
		case !given:
			given = true
			d.endAll(errUnled())
		}
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Dispatcher) endAll(cause error) {
	var nodes []string
	d.mu.Lock()
	for id, r := range d.nodes {
		if r.session != nil && r.session.live() {
			r.session.end(cause)
			nodes = append(nodes, id)
		}
	}
	d.mu.Unlock()
	if len(nodes) > 0 {
		d.cfg.Log.Warn("no manager leads; the nodes that are connected here are sent to other managers", "nodes", len(nodes))
	}
	for _, id := range nodes {
		d.look(id)
	}
}

func errUnled() error {
	return api.Errorf(api.Unavailable, "this manager has lost the others; the node should turn to another one")
}
