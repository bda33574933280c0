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
	// unledLimit is how long a manager without leader keeps its sessions: an
	// election is over long before.
	unledLimit = 4 * time.Second
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

// guardLead ends all sessions when no manager has led for long: this one may be
// cut off from the others, and its nodes not.
func (d *Dispatcher) guardLead(ctx context.Context) error {
	since := time.Now() // of when there is no leader
	timer := time.NewTimer(unledLimit)
	defer timer.Stop()
	for given := false; ; {
		led, changed := d.cfg.Led()
		switch left := unledLimit - time.Since(since); {
		case led:
			since, given = time.Now(), false
			timer.Stop()
		case left > 0:
			timer.Reset(left)
		case !given:
			given = true
			d.endAll(errUnled())
		}
		select {
		case <-changed:
			if led {
				since = time.Now()
			}
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
