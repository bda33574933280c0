package raftnode

import (
	"encoding/binary"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// held are messages that say nothing but that entries are committed. Raft sends
// one to each follower, and gets an answer, whenever something is: half of all
// messages of a write. While there are writes, the next entries say it too; so
// these wait for them, but not for long.
type held struct {
	messages map[uint64]heldMessage // by receiver
	timer    *time.Timer
	due      <-chan time.Time // the timer's; nil: it is not set, and nothing is held
}

type heldMessage struct {
	raftpb.Message
	since time.Time // when the receiver was first not told
}

// hold reports whether a MsgApp is held back. One that is not takes the place of
// what was held for its receiver: it has the same commit index or a later one.
// Members that wait for their own proposals are told at once.
func (n *Node) hold(m *raftpb.Message, committed []raftpb.Entry) bool {
	h := &n.held
	if len(m.Entries) > 0 || len(committed) == 0 || concerns(committed, m.To) {
		delete(h.messages, m.To)
		return false
	}
	if h.messages == nil {
		h.messages = map[uint64]heldMessage{}
	}
	since := time.Now()
	if was, ok := h.messages[m.To]; ok {
		since = was.since
	}
	h.messages[m.To] = heldMessage{*m, since}
	if h.due == nil {
		h.set(commitHold)
	}
	return true
}

func (h *held) set(d time.Duration) {
	if h.timer == nil {
		h.timer = time.NewTimer(d)
	} else {
		h.timer.Reset(d)
	}
	h.due = h.timer.C
}

// concerns reports whether one of the entries was proposed by the member, or
// changes the members.
func concerns(entries []raftpb.Entry, id uint64) bool {
	for i := range entries {
		e := &entries[i]
		if e.Type != raftpb.EntryNormal || len(e.Data) >= proposalHeader && binary.BigEndian.Uint64(e.Data) == id {
			return true
		}
	}
	return false
}

// release sends what was held for long enough.
func (n *Node) release() {
	now := time.Now()
	n.held.due = nil
	rest := commitHold
	for id, m := range n.held.messages {
		if age := now.Sub(m.since); age < commitHold {
			rest = min(rest, commitHold-age)
			continue
		}
		delete(n.held.messages, id)
		if b := n.encode(&m.Message); b != nil {
			n.cfg.Transport.Send(Member{ID: id, Address: n.addresses[id]}, b)
		}
	}
	if len(n.held.messages) > 0 {
		n.held.set(rest)
	}
}
