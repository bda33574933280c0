package raftnode

import (
	"context"
	"time"
)

// patience is how long one request still waits for somebody to lead.
type patience struct {
	node  *Node
	since time.Time // when the leader was found missing; zero: there is one
	timer *time.Timer
	tries int
}

func newPatience(n *Node) *patience { return &patience{node: n} }

// watch returns what fires when patience is at its end: nil while there is a
// leader.
func (p *patience) watch() <-chan time.Time {
	if p.node.Status().Leader != 0 {
		p.since = time.Time{}
		p.stop()
		return nil
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	if p.timer == nil {
		p.timer = time.NewTimer(max(p.node.cfg.Patience-time.Since(p.since), 0))
	}
	return p.timer.C
}

func (p *patience) stop() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}

// pause waits until another try may do better; why is the error when patience, or
// ctx, is at its end.
func (p *patience) pause(ctx context.Context, why error) error {
	defer p.stop()
	if p.tries++; p.tries > maxTries {
		return why
	}
	for {
		changed := p.node.Changed()
		end := p.watch()
		var soon <-chan time.Time
		var t *time.Timer
		if end == nil { // somebody leads: we may not have heard the newest
			t = time.NewTimer(min(time.Duration(p.tries)*time.Millisecond, maxTryPause))
			soon = t.C
		}
		select {
		case <-changed:
			if t == nil {
				continue
			}
			t.Stop()
			return nil
		case <-soon:
			return nil
		case <-end:
			return why
		case <-p.node.done:
			return p.node.stopped()
		case <-ctx.Done():
			return why
		}
	}
}

const (
	maxTryPause = 50 * time.Millisecond
	maxTries    = 200 // 9 s
)
