package presence

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

const (
	// interval is how often the managers' reachability is looked at.
	interval = 250 * time.Millisecond
	// stall is how late that may be: if it is later, this process stood still, and nodes
	// may have come back unheard.
	stall        = 250 * time.Millisecond
	probeTimeout = 300 * time.Millisecond
	chunk        = 256 // tasks given up in one transaction
)

// Loop is the leader's loop; all but Probe is required.
type Loop struct {
	Store *store.Store
	// Reachable reports whether the leader reaches a manager now; of itself it
	// says true.
	Reachable func(n *api.Node) bool
	// Grace is how long a node may be silent at the swarm's heart-beat period.
	Grace func(*api.Cluster) time.Duration
	// Probe reports whether a process accepts connections at an address (false:
	// its host says that none does), or an error when nobody answers. Nil: not
	// known.
	Probe func(ctx context.Context, addr string) (bool, error)
	Log   *slog.Logger
}

// Run watches for one leadership epoch. It returns when ctx ends (nil), or when a
// write fails.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (l *Loop) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	view, w := l.Store.Watch(store.KindNode)
	defer w.Close()
	changes, failed := make(chan []store.Change), make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for {
			c, err := w.Next(ctx)
			if err != nil {
				failed <- err
				return
			}
			select {
			case changes <- c:
			case <-ctx.Done():
				return
			}
		}
	})
	g := newWatchdog(l.grace())
	for n := range store.List[*api.Node](view) {
		g.see(n, time.Now(), l.Store.Now())
	}
	g.managers(l.Reachable, time.Now())
	tick, last := time.NewTicker(interval), time.Now()
	defer tick.Stop()
	for {
		select {
		case cs := <-changes:
			now, wall := time.Now(), l.Store.Now()
			for _, c := range cs {
				if n, _ := c.New.(*api.Node); n != nil {
					g.see(n, now, wall)
				} else {
					g.forget(c.ID)
				}
			}
		case <-tick.C:
			now := time.Now()
			if late := now.Sub(last) - interval; late > stall {
				g.excuse(late, now)
			}
			g.grace = l.grace()
			g.managers(l.Reachable, now)
			if err := l.act(ctx, g); err != nil {
				return err
			}
			last = time.Now() // what it does itself takes time, too
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Loop) grace() time.Duration {
	for c := range store.List[*api.Cluster](l.Store.View()) {
		return l.Grace(c)
	}
	return l.Grace(&api.Cluster{})
}

// act does what is due.
func (l *Loop) act(ctx context.Context, g *watchdog) error {
	for id, v := range g.due(time.Now()) {
		n := g.nodes[id]
		var err error
		switch v {
		case unknown:
			err = l.mark(ctx, n, swarm.NodeStateUnknown, "its manager is gone; waiting for the node to connect to another one")
		case dead:
			err = l.mark(ctx, n, swarm.NodeStateDown, "heartbeat failure: the node did not connect to a manager within "+g.grace.String())
		case probe:
			if l.died(ctx, n) {
				err = l.mark(ctx, n, swarm.NodeStateDown, "the manager is unreachable, and no process answers at its address")
			}
		case orphan:
			err = l.orphan(ctx, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// died reports whether a manager's host says that nothing listens at its port.
func (l *Loop) died(ctx context.Context, n *api.Node) bool {
	if l.Probe == nil || n.ManagerAddr == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	listens, err := l.Probe(ctx, n.ManagerAddr)
	return err == nil && !listens
}

// mark changes a node's state, unless the node has a new session or was marked
// since.
func (l *Loop) mark(ctx context.Context, seen *api.Node, state swarm.NodeState, why string) error {
	_, err := l.Store.Update(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Node](tx, seen.ID)
		if old == nil || old.Session != seen.Session || old.Status.State != seen.Status.State {
			return nil
		}
		n := *old
		n.Status = swarm.NodeStatus{State: state, Addr: old.Status.Addr, Message: why}
		if state == swarm.NodeStateDown {
			n.DownSince = l.Store.Now()
		}
		return store.Put(tx, &n)
	})
	if err == nil {
		l.Log.Info("a node without manager", "node", seen.ID, "state", state, "why", why)
	}
	return err
}

// orphan gives up the tasks of a node that is down for long.
func (l *Loop) orphan(ctx context.Context, seen *api.Node) error {
	for done := false; !done; {
		given := 0
		_, err := l.Store.Update(ctx, func(tx *store.Tx) error {
			given = 0
			n := store.Get[*api.Node](tx, seen.ID)
			if n == nil || n.Status.State != swarm.NodeStateDown || n.DownSince != seen.DownSince {
				return nil
			}
			now := l.Store.Now()
			for t := range store.List[*api.Task](tx, store.ByNode(seen.ID)) {
				if api.Rank(t.Status.State) < api.Rank(swarm.TaskStateAssigned) || api.Final(t.Status.State) {
					continue
				}
				if given++; given > chunk {
					return nil
				}
				o := *t
				o.Status.State, o.Status.Timestamp = swarm.TaskStateOrphaned, now
				o.Status.Message = "orphaned: its node is down since more than " + orphanAfter.String()
				if err := store.Put(tx, &o); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if given > 0 {
			l.Log.Warn("a node is down for long; its tasks are orphaned", "node", seen.ID, "tasks", min(given, chunk))
		}
		done = given <= chunk
	}
	return nil
}
