package dispatcher

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

const (
	// comeback is how long a node whose connection broke has to open another one:
	// an agent that lives takes some tens of milliseconds.
	comeback = time.Second
	// fresh is how long ago the node must have been heard for a broken connection
	// to say that its process has died. One that was silent before was given up by
	// the transport: only its heart-beats count.
	fresh        = 10 * time.Second
	probeTimeout = 300 * time.Millisecond
)

// broken is called when the connection of a session that stands broke. A process
// that ends closes its connections, so when the node does not come back to any
// manager at once, it is down. Otherwise the heart-beats decide.
func (d *Dispatcher) broken(s *session) {
	s.mu.Lock()
	heard := time.Since(s.heard)
	s.mu.Unlock()
	if heard >= fresh || !s.live() {
		return
	}
	d.background(func(ctx context.Context) {
		t := time.NewTimer(comeback)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.ended:
			return
		case <-ctx.Done():
			return
		}
		if d.gone(ctx, s) {
			d.lose(s, api.Errorf(api.Unavailable, "the node's connection broke, and it did not come back within %v", comeback))
		}
	})
}

// gone reports whether nothing speaks for a node whose connection broke: no
// farewell, no other session, no process that listens.
func (d *Dispatcher) gone(ctx context.Context, s *session) bool {
	s.mu.Lock()
	paused := s.paused
	s.mu.Unlock()
	if paused {
		return false
	}
	n := store.Get[*api.Node](d.cfg.Store.View(), s.node)
	if n == nil || n.Session.ID != s.id {
		return false
	}
	if d.cfg.Probe == nil || n.Role != swarm.NodeRoleManager || n.ManagerAddr == "" {
		return true // a worker listens nowhere
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	listens, err := d.cfg.Probe(ctx, n.ManagerAddr)
	return err != nil || !listens
}

// farewell takes note that a node ends its session on purpose.
func (d *Dispatcher) farewell(s *session, leaves bool) {
	if leaves {
		d.lose(s, api.Errorf(api.Unavailable, "the node has left the swarm"))
		return
	}
	s.mu.Lock()
	s.paused = true
	s.mu.Unlock()
}
