package raftnode

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// noted is a Transport that keeps when something was sent, and to whom.
type noted struct {
	Transport
	began time.Time
	sent  map[uint64][]time.Duration
}

func (n *noted) Send(to Member, _ []byte) {
	n.sent[to.ID] = append(n.sent[to.ID], time.Since(n.began))
}

// TestHeld: what is held goes after two milliseconds of its own, unless entries go
// before.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		to := &noted{began: time.Now(), sent: map[uint64][]time.Duration{}}
		n := &Node{cfg: Config{ID: 1, Transport: to, Log: slog.New(slog.DiscardHandler)}}
		committed := []raftpb.Entry{{Data: make([]byte, proposalHeader)}}
		until := func(at time.Duration) {
			for end := time.After(at - time.Since(to.began)); ; {
				select {
				case <-n.held.due:
					n.release()
				case <-end:
					return
				}
			}
		}
		for _, step := range []struct {
			at      time.Duration
			to      uint64
			entries []raftpb.Entry
			held    bool
		}{
			{0, 2, nil, true},
			{0, 3, nil, true},
			{1 * ms, 2, committed, false}, // which tells it
			{1 * ms, 3, nil, true},        // who waits for the first one
			{1500 * time.Microsecond, 2, nil, true},
		} {
			until(step.at)
			if got := n.hold(&raftpb.Message{Type: raftpb.MsgApp, To: step.to, Entries: step.entries}, committed); got != step.held {
				t.Errorf("%v, to member %d: held: %v", step.at, step.to, got)
			}
		}
		until(10 * ms)
		if got := to.sent[2]; len(got) != 1 || got[0] != 3500*time.Microsecond {
			t.Errorf("to member 2 at %v", got)
		}
		if got := to.sent[3]; len(got) != 1 || got[0] != 2*ms {
			t.Errorf("to member 3 at %v", got)
		}
		if n.held.due != nil {
			t.Error("the timer is set for nothing")
		}
	})
}
