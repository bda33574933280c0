package dispatcher

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// orphanAfter is how long a node is down until its tasks are given up: whatever
// they hold (networks, volumes) can then be used again.
const orphanAfter = 24 * time.Hour

// register writes down that the node is there, and what it said of itself.
func (d *Dispatcher) register(ctx context.Context, s *session, m *swarmpb.NodeDescription, host string) error {
	var description *swarm.NodeDescription
	if m != nil {
		description = m.API()
	}
	node := store.Get[*api.Node](d.cfg.Store.View(), s.node)
	if node != nil && registered(node, description, host) == nil {
		return nil
	}
	return d.writer.do(ctx, func(tx *store.Tx) error {
		node := store.Get[*api.Node](tx, s.node)
		if node == nil {
			return errNotInSwarm(s.node)
		}
		if n := registered(node, description, host); n != nil {
			return store.Put(tx, n)
		}
		return nil
	})
}

// registered returns the node as it is once registered; nil when it is already.
func registered(node *api.Node, description *swarm.NodeDescription, host string) *api.Node {
	n := *node
	n.Status = swarm.NodeStatus{State: swarm.NodeStateReady, Addr: host}
	if description != nil {
		n.Description = *description
	}
	if n.Status == node.Status && reflect.DeepEqual(n.Description, node.Description) {
		return nil
	}
	return &n
}

// ready writes READY again, after somebody else wrote another state of a node
// whose session stands: a new leader that does not know it. Called with d.mu
// held.
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
		err := d.setStatus(ctx, s.node, func(n *api.Node) (swarm.NodeStatus, bool) {
			return swarm.NodeStatus{State: swarm.NodeStateReady, Addr: n.Status.Addr}, s.live()
		})
		s.mu.Lock()
		s.marking = false
		s.mu.Unlock()
		d.logFailure(ctx, "marking a node ready", s.node, err)
	})
}

// expire ends a session without heart-beats, and says that the node is down.
func (d *Dispatcher) expire(s *session, grace time.Duration) {
	s.end(api.Errorf(api.DeadlineExceeded, "no heart-beat for %v", grace))
	if d.absent(s) {
		d.logs.drop(s.node)
	}
	d.background(func(ctx context.Context) {
		err := d.setStatus(ctx, s.node, func(n *api.Node) (swarm.NodeStatus, bool) {
			return swarm.NodeStatus{
				State: swarm.NodeStateDown, Addr: n.Status.Addr,
				Message: "heartbeat failure: no heart-beat for " + grace.String(),
			}, d.absent(s)
		})
		d.logFailure(ctx, "marking a node down", s.node, err)
	})
}

// absent reports whether the node has no session since s ended.
func (d *Dispatcher) absent(s *session) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.nodes[s.node]
	return r != nil && (r.session == nil || r.session == s)
}

// setStatus writes what status says, if it says so.
func (d *Dispatcher) setStatus(ctx context.Context, node string, status func(*api.Node) (swarm.NodeStatus, bool)) error {
	return d.writer.do(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Node](tx, node)
		if old == nil {
			return nil
		}
		want, ok := status(old)
		if !ok || want == old.Status {
			return nil
		}
		n := *old
		n.Status = want
		return store.Put(tx, &n)
	})
}

func (d *Dispatcher) logFailure(ctx context.Context, what, node string, err error) {
	if err != nil && ctx.Err() == nil {
		d.cfg.Log.Error(what, "node", node, "err", err)
	}
}

// Lead does what only the leader does, for one leadership epoch: nodes that were
// ready and do not come back within the grace period are down, and the tasks of
// nodes that are down for a day are orphaned. It returns when ctx ends.
func (d *Dispatcher) Lead(ctx context.Context) error {
	for {
		err := d.lead(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (d *Dispatcher) lead(ctx context.Context) error {
	view, w := d.cfg.Store.Watch(store.KindNode)
	defer w.Close()
	g := newWatchdog(graceFactor * d.period())
	for n := range store.List[*api.Node](view) {
		g.see(n.ID, n.Status.State, time.Now())
		if n.Status.State != swarm.NodeStateReady {
			continue
		}
		err := d.setStatus(ctx, n.ID, func(n *api.Node) (swarm.NodeStatus, bool) {
			return swarm.NodeStatus{
				State: swarm.NodeStateUnknown, Addr: n.Status.Addr,
				Message: "waiting for the node to connect after the leader changed",
			}, n.Status.State == swarm.NodeStateReady && !d.connected(n.ID)
		})
		if err != nil {
			return err
		}
	}
	changes := make(chan []store.Change)
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			c, err := w.Next(ctx)
			if err != nil {
				failed <- err
				return
			}
			select {
			case changes <- c:
			case <-ctx.Done():
				failed <- ctx.Err()
				return
			}
		}
	}()
	defer func() { cancel(); <-failed }() //nolint:errcheck // its end is what counts
	return d.guard(ctx, g, changes, failed)
}

func (d *Dispatcher) connected(node string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.nodes[node]
	return r != nil && r.session != nil && r.session.live()
}

// guard acts on what the watchdog finds due.
func (d *Dispatcher) guard(ctx context.Context, g *watchdog, changes <-chan []store.Change, failed chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		late, lost, next := g.due(time.Now())
		for _, id := range late {
			err := d.setStatus(ctx, id, func(n *api.Node) (swarm.NodeStatus, bool) {
				return swarm.NodeStatus{
					State: swarm.NodeStateDown, Addr: n.Status.Addr,
					Message: "the node did not connect within " + g.grace.String() + " after the leader changed",
				}, n.Status.State == swarm.NodeStateUnknown
			})
			if err != nil {
				return err
			}
		}
		for _, id := range lost {
			if err := d.orphan(ctx, id); err != nil {
				return err
			}
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			failed <- err
			return err
		case <-timer.C:
		case cs := <-changes:
			for _, c := range cs {
				if n := object[api.Node](c.New); n != nil {
					g.see(n.ID, n.Status.State, time.Now())
				} else {
					g.forget(c.ID)
				}
			}
		}
	}
}

// orphan gives up the tasks of a node.
func (d *Dispatcher) orphan(ctx context.Context, node string) error {
	d.cfg.Log.Warn("a node is down for long; its tasks are orphaned", "node", node)
	return d.writer.do(ctx, func(tx *store.Tx) error {
		now := time.Now().UTC()
		for t := range store.List[*api.Task](tx, store.ByNode(node)) {
			if api.Rank(t.Status.State) < api.Rank(swarm.TaskStateAssigned) || api.Final(t.Status.State) {
				continue
			}
			orphaned := *t
			orphaned.Status.State = swarm.TaskStateOrphaned
			orphaned.Status.Timestamp = now
			orphaned.Status.Message = "orphaned: its node is down since more than " + orphanAfter.String()
			if err := store.Put(tx, &orphaned); err != nil {
				return err
			}
		}
		return nil
	})
}

// watchdog keeps since when nodes are unknown or down. Pure: time comes from
// outside.
type watchdog struct {
	grace   time.Duration
	unknown map[string]time.Time
	down    map[string]time.Time
}

func newWatchdog(grace time.Duration) *watchdog {
	return &watchdog{grace: grace, unknown: map[string]time.Time{}, down: map[string]time.Time{}}
}

func (g *watchdog) see(id string, s swarm.NodeState, now time.Time) {
	for state, since := range map[swarm.NodeState]map[string]time.Time{
		swarm.NodeStateUnknown: g.unknown, swarm.NodeStateDown: g.down,
	} {
		if s != state {
			delete(since, id)
		} else if _, ok := since[id]; !ok {
			since[id] = now
		}
	}
}

func (g *watchdog) forget(id string) {
	delete(g.unknown, id)
	delete(g.down, id)
}

// due takes the nodes whose time is up: late ones are to be marked down, the
// tasks of lost ones to be orphaned. next is when to ask again.
func (g *watchdog) due(now time.Time) (late, lost []string, next time.Duration) {
	next = time.Hour
	take := func(since map[string]time.Time, limit time.Duration) (ids []string) {
		for id, at := range since {
			if left := limit - now.Sub(at); left > 0 {
				next = min(next, left)
				continue
			}
			ids = append(ids, id)
			delete(since, id)
		}
		return ids
	}
	late = take(g.unknown, g.grace)
	lost = take(g.down, orphanAfter)
	return late, lost, next
}
