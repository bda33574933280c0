package presence

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

const (
	// patience is how long a node may be without manager until it is shown as
	// UNKNOWN, and gets no new tasks. Agents need far less to move over.
	patience = 2 * time.Second
	// comeback is how long a manager must be unreachable before a refused
	// connection to its port is taken for its death.
	comeback = time.Second
	// orphanAfter is how long a node is down until its tasks are given up:
	// whatever they hold (networks, volumes) can then be used again. As Docker's.
	orphanAfter = 24 * time.Hour
	// observed is how long of that the leader has seen for itself: DownSince may be by
	// a clock that is wrong.
	observed = time.Hour
)

// watchdog keeps since when nodes are without a manager, and which are down. It
// has no clock and no goroutine: time comes from outside.
type watchdog struct {
	grace     time.Duration
	reachable map[string]bool // managers, by node id
	nodes     map[string]*api.Node
	leads     map[string]*api.Node // those of nodes that are managers
	unserved  map[string]time.Time // since when
	down      map[string]absence
}

// absence is that of a node which is down: since when by the store, and by this
// process's own time, which is never set.
type absence struct{ stored, since time.Time }

func newWatchdog(grace time.Duration) *watchdog {
	return &watchdog{
		grace: grace, reachable: map[string]bool{}, nodes: map[string]*api.Node{}, leads: map[string]*api.Node{},
		unserved: map[string]time.Time{}, down: map[string]absence{},
	}
}

// see takes what the store says of a node. wall is the clock by which stored times
// are dated: it tells how long a node was down before, and no more.
func (g *watchdog) see(n *api.Node, now, wall time.Time) {
	if old := g.nodes[n.ID]; old != nil && old.Session != n.Session {
		delete(g.unserved, n.ID) // it moved over: what was before does not count
	}
	g.nodes[n.ID] = n
	delete(g.leads, n.ID)
	if n.Role == swarm.NodeRoleManager {
		g.leads[n.ID] = n
	}
	switch {
	case n.Status.State != swarm.NodeStateDown:
		delete(g.down, n.ID)
	case !n.DownSince.Equal(g.down[n.ID].stored) || n.DownSince.IsZero():
		g.down[n.ID] = absence{n.DownSince, now.Add(-min(max(wall.Sub(n.DownSince), 0), orphanAfter-observed))}
	}
	g.judge(n, now)
}

func (g *watchdog) forget(id string) {
	delete(g.nodes, id)
	delete(g.unserved, id)
	delete(g.down, id)
	delete(g.reachable, id)
	delete(g.leads, id)
}

// excuse has the time in which nobody listened not count.
func (g *watchdog) excuse(late time.Duration, now time.Time) {
	for id, since := range g.unserved {
		if since = since.Add(late); since.After(now) {
			since = now
		}
		g.unserved[id] = since
	}
}

// managers looks at which managers can be reached now.
func (g *watchdog) managers(reach func(*api.Node) bool, now time.Time) {
	reachable := map[string]bool{}
	for id, n := range g.leads {
		reachable[id] = reach(n)
	}
	same := len(reachable) == len(g.reachable)
	for id, ok := range reachable {
		was, known := g.reachable[id]
		same = same && known && was == ok
	}
	g.reachable = reachable
	if same {
		return
	}
	for _, n := range g.nodes {
		g.judge(n, now)
	}
}

// judge notes whether somebody watches over a node.
func (g *watchdog) judge(n *api.Node, now time.Time) {
	if n.Status.State == swarm.NodeStateDown || g.reachable[n.Session.Manager] {
		delete(g.unserved, n.ID)
	} else if _, ok := g.unserved[n.ID]; !ok {
		g.unserved[n.ID] = now
	}
}

// verdict is what is to be done about a node.
type verdict uint8

const (
	unknown verdict = iota // show that it is not known how it does
	dead                   // its grace period is over
	probe                  // a manager: see whether its process has died
	orphan                 // give up its tasks
)

// due says what is to be done now.
func (g *watchdog) due(now time.Time) map[string]verdict {
	all := map[string]verdict{}
	for id, since := range g.unserved {
		n, gone := g.nodes[id], now.Sub(since)
		switch {
		case gone >= g.grace:
			all[id] = dead
		case n.Status.State == swarm.NodeStateReady && gone >= patience:
			all[id] = unknown
		case n.Session.Manager == id && !n.Session.Paused && n.Role == swarm.NodeRoleManager && gone >= comeback:
			all[id] = probe
		}
	}
	for id, a := range g.down {
		if now.Sub(a.since) >= orphanAfter {
			all[id] = orphan
			delete(g.down, id) // once is enough
		}
	}
	return all
}
