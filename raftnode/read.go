package raftnode

import (
	"context"
	"encoding/binary"
	"slices"

	"go.etcd.io/raft/v3"
)

// ReadIndex returns when this member has applied all that was acknowledged
// before the call, anywhere in the cluster: what is then read here is
// linearizable. It returns the index of the newest such entry. It needs a
// quorum, and waits for one until ctx ends.
func (n *Node) ReadIndex(ctx context.Context) (uint64, error) {
	return n.call(ctx, request{read: true})
}

// reads has the reads that wait for the leader to say what is committed. One
// question to the leader serves all that wait when it is asked.
type reads struct {
	id    uint64         // of the question under way; 0: none
	asked []chan outcome // wait for its answer
	next  []chan outcome // wait for the next question
	age   int            // ticks since the question
}

// reader waits for an entry to be applied.
type reader struct {
	index uint64
	reply chan outcome
}

func (r *reads) add(n *Node, reply chan outcome) {
	r.next = append(r.next, reply)
	if r.id == 0 {
		r.ask(n)
	}
}

func (r *reads) ask(n *Node) {
	r.asked, r.next = append(r.asked, r.next...), nil
	r.id, r.age = n.seq.Add(1), 0
	n.raw.ReadIndex(binary.BigEndian.AppendUint64(nil, r.id))
}

// tick asks again if the question or its answer got lost, or nobody leads.
func (r *reads) tick(n *Node) {
	if r.id == 0 {
		return
	}
	if r.age++; r.age > 2*n.cfg.HeartbeatTicks {
		r.ask(n)
	}
}

func (r *reads) answered(n *Node, states []raft.ReadState) {
	for _, s := range states {
		if len(s.RequestCtx) != 8 || binary.BigEndian.Uint64(s.RequestCtx) != r.id || r.id == 0 {
			continue
		}
		asked := r.asked
		r.id, r.asked = 0, nil
		n.await(s.Index, asked)
		if len(r.next) > 0 {
			r.ask(n)
		}
	}
}

// await answers when the entry is applied.
func (n *Node) await(index uint64, replies []chan outcome) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, reply := range replies {
		n.readers = append(n.readers, reader{index, reply})
	}
	n.answerReaders(n.apply.index.Load())
}

// answerReaders answers whose entry is applied. Callers hold mu.
func (n *Node) answerReaders(applied uint64) {
	if len(n.readers) == 0 {
		return
	}
	n.readers = slices.DeleteFunc(n.readers, func(r reader) bool {
		if r.index <= applied {
			r.reply <- outcome{index: r.index}
		}
		return r.index <= applied
	})
}
