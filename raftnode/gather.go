package raftnode

import (
	"time"

	"go.etcd.io/raft/v3"
)

// gather decides when a leader's proposals go into the log. Those that go
// together cost one write to each disk and one message to each member, answered
// once. Who is answered soon proposes again; without a wait the first of those
// who were answered together gets a round for itself and all others the next one.
// So the first waits until as many are there as were under way at once: not for
// long, and only while it pays. After each vain wait in a row about twice as many
// rounds go at once.
type gather struct {
	crowd   int // proposals that were under way at once since the last round
	timer   *time.Timer
	due     <-chan time.Time // the timer's; nil: nothing waits
	expired bool             // what is gathered has waited for long enough
	vain    int              // rounds that went at once after the last vain wait
	skip    int              // rounds that go at once from now on
}

// ripe reports whether what was gathered goes into the log now. Call it each time
// that there may be more.
func (n *Node) ripe() bool {
	g, have := &n.gather, len(n.proposals)
	if have == 0 || n.raw.BasicStatus().RaftState != raft.StateLeader {
		g.stop()
		return true
	}
	g.crowd = min(max(g.crowd, have+n.flying()), maxCrowd)
	switch {
	case g.skip > 0:
		g.skip--
		g.crowd = 0
	case have >= g.crowd:
		if have > 1 {
			g.vain = 0
		}
		g.crowd = have
	case g.expired:
		g.vain = min(2*g.vain+1, maxVain)
		g.skip = g.vain
		g.crowd = have
	default:
		g.start()
		return false
	}
	g.stop()
	return true
}

func (g *gather) start() {
	switch {
	case g.due != nil:
		return
	case g.timer == nil:
		g.timer = time.NewTimer(gatherHold)
	default:
		g.timer.Reset(gatherHold)
	}
	g.due = g.timer.C
}

func (g *gather) stop() {
	if g.due != nil {
		g.timer.Stop()
	}
	g.due, g.expired = nil, false
}

// expire notes that the timer has fired.
func (g *gather) expire() { g.due, g.expired = nil, true }

// flying counts the entries in the log that are not applied here.
func (n *Node) flying() int {
	last, err := n.storage.LastIndex()
	if err != nil {
		return 0
	}
	return int(last - min(last, n.apply.index.Load()))
}
