package dispatcher

import (
	"context"
	"net"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// register writes down that this manager serves the node, and what it said of
// itself. That write goes through the log, so from its return on this manager's
// store has all that any other manager may have told the node before.
func (d *Dispatcher) register(ctx context.Context, s *session, m *swarmpb.NodeDescription, host string) error {
	var description *swarm.NodeDescription
	if m != nil {
		description = m.API()
	}
	return d.writer.do(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Node](tx, s.node)
		if old == nil {
			return errNotInSwarm(s.node)
		}
		n := *old
		n.Session = api.NodeSession{ID: s.id, Manager: d.cfg.Node}
		n.Status = swarm.NodeStatus{State: swarm.NodeStateReady, Addr: address(old, host)}
		n.DownSince = time.Time{}
		if description != nil {
			n.Description = *description
		}
		return store.Put(tx, &n)
	})
}

// address is where a node is: a manager that calls itself by loopback is where
// other managers reach it.
func address(n *api.Node, host string) string {
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() && n.Role == swarm.NodeRoleManager {
		if h, _, err := net.SplitHostPort(n.ManagerAddr); err == nil {
			return h
		}
	}
	return host
}

// known returns the node's object, after a look at what is committed if this
// manager does not have it; nil when there is no such node.
func (d *Dispatcher) known(ctx context.Context, id string) (*api.Node, error) {
	if n := store.Get[*api.Node](d.cfg.Store.View(), id); n != nil {
		return n, nil
	}
	if err := d.cfg.Sync(ctx); err != nil {
		return nil, api.Errorf(api.Unavailable, "this manager can't tell whether node %s is part of the swarm: %w", id, err)
	}
	return store.Get[*api.Node](d.cfg.Store.View(), id), nil
}

// reconcile compares what the store says of a node's session with what this
// manager knows of it.
func (d *Dispatcher) reconcile(n *api.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.nodes[n.ID]
	var s *session
	if r != nil {
		s = r.session
	}
	here := s != nil && s.live()
	if here && s.registered && n.Session.ID != s.id {
		// n may be of before the registration: only what the store says now counts.
		if now := store.Get[*api.Node](d.cfg.Store.View(), n.ID); now != nil && now.Session.ID != s.id {
			s.end(api.Errorf(api.Conflict, "the node has opened another session since"))
			here = false
		}
	}
	switch {
	case here && n.Session.ID == s.id:
		if n.Status.State != swarm.NodeStateReady {
			d.ready(s)
		}
	case !here && n.Session.Manager == d.cfg.Node && n.Status.State != swarm.NodeStateDown:
		d.await(n)
		return
	}
	if r != nil {
		r.expect("", nil)
	}
}

// look reconciles a node with what the store says now.
func (d *Dispatcher) look(id string) {
	if n := store.Get[*api.Node](d.cfg.Store.View(), id); n != nil {
		d.reconcile(n)
	}
}

// expect replaces what is awaited.
func (r *record) expect(id string, timer *time.Timer) {
	if r.timer != nil {
		r.timer.Stop()
	}
	r.awaited, r.timer = id, timer
}

// await gives a node whose session this manager has no more, as after a start,
// the grace period to come back, here or elsewhere. Called with d.mu held.
func (d *Dispatcher) await(n *api.Node) {
	if d.running == nil {
		return
	}
	r := d.record(n.ID)
	if r.awaited == n.Session.ID {
		return
	}
	id, session, limit, stood := n.ID, n.Session.ID, Grace(d.period()), d.awake.stood(time.Now())
	r.expect(session, time.AfterFunc(limit, func() {
		d.background(func(ctx context.Context) {
			if more := d.awake.stood(time.Now()) - stood; more > 0 && !pause(ctx, more, nil) {
				return
			}
			d.down(ctx, id, session, "heartbeat failure: the node did not connect within "+limit.String()+" after its session ended")
		})
	}))
}

// record returns what is kept of the node. Called with d.mu held.
func (d *Dispatcher) record(node string) *record {
	r := d.nodes[node]
	if r == nil {
		r = &record{}
		d.nodes[node] = r
	}
	return r
}

// removed ends all of a node that is no longer part of the swarm.
func (d *Dispatcher) removed(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.nodes[id]
	if r == nil {
		return
	}
	r.expect("", nil)
	if r.session != nil {
		r.session.end(errNotInSwarm(id))
	}
	delete(d.nodes, id)
}

// Where a node's state can't be written, it is tried again after remark, then ever
// later up to maxRemark.
const (
	remark    = time.Second
	maxRemark = 8 * time.Second
)

// ready writes READY again, after somebody else wrote another state of a node
// whose session stands. What the store says of the node then is looked at again: the
// write may have failed, and more may have been written since. Called with d.mu held.
func (d *Dispatcher) ready(s *session) {
	s.mu.Lock()
	busy := s.marking || !s.live()
	s.marking = true
	s.mu.Unlock()
	if busy || d.running == nil {
		return
	}
	ctx := d.running
	d.work.Go(func() {
		err := d.setStatus(ctx, s.node, s.id, func(n *api.Node) bool {
			n.Status, n.DownSince = swarm.NodeStatus{State: swarm.NodeStateReady, Addr: n.Status.Addr}, time.Time{}
			return s.live()
		})
		d.logFailure(ctx, "marking a node ready", s.node, err)
		if err != nil {
			pause(ctx, remark, s.ended)
		}
		s.mu.Lock()
		s.marking = false
		s.mu.Unlock()
		if s.live() && ctx.Err() == nil {
			d.look(s.node)
		}
	})
}

// expire ends a session without heart-beats, and says that the node is down. If this
// manager stood still since the last one, heart-beats may be waiting: the node gets
// that time back, and another period at least.
func (d *Dispatcher) expire(s *session) {
	now := time.Now()
	stood := d.awake.stood(now)
	s.mu.Lock()
	limit := s.limit
	more := max(stood-s.stood, d.period())
	spared := stood > s.stood && s.stalls < maxStalls
	if spared {
		s.stalls++
		s.stood = stood
		s.timer.Reset(more)
	}
	s.mu.Unlock()
	if !spared {
		d.lose(s, api.Errorf(api.DeadlineExceeded, "heartbeat failure: no heart-beat for %v", limit))
	}
}

// lose ends a session whose node is gone, and says that the node is down unless
// it opened another session.
func (d *Dispatcher) lose(s *session, cause error) {
	s.end(cause)
	d.logs.drop(s.node)
	d.background(func(ctx context.Context) { d.down(ctx, s.node, s.id, cause.Error()) })
}

// down says that a node is down, if that session is still its last one though the node
// could have opened another, as often as it takes: nobody else does.
func (d *Dispatcher) down(ctx context.Context, node, session, why string) {
	for wait := remark; d.hearing(ctx); wait = min(2*wait, maxRemark) {
		err := d.setStatus(ctx, node, session, func(n *api.Node) bool {
			n.Status = swarm.NodeStatus{State: swarm.NodeStateDown, Addr: n.Status.Addr, Message: why}
			if n.DownSince.IsZero() {
				n.DownSince = d.cfg.Store.Now()
			}
			return true
		})
		d.logFailure(ctx, "marking a node down", node, err)
		if err == nil || !pause(ctx, wait, nil) {
			return
		}
	}
}

// pause waits; false: ctx or what else is given ended before that.
func pause(ctx context.Context, d time.Duration, ended <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ended:
	case <-ctx.Done():
	}
	return false
}

// setStatus writes what change makes of a node, if that says so and the session
// is the node's last one.
func (d *Dispatcher) setStatus(ctx context.Context, node, session string, change func(*api.Node) bool) error {
	return d.writer.do(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Node](tx, node)
		if old == nil || old.Session.ID != session {
			return nil
		}
		n := *old
		if !change(&n) || n.Status == old.Status {
			return nil
		}
		return store.Put(tx, &n)
	})
}

func (d *Dispatcher) logFailure(ctx context.Context, what, node string, err error) {
	if err != nil && ctx.Err() == nil {
		d.cfg.Log.Error(what, "node", node, "err", err)
	}
}
