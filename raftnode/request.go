package raftnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
)

// request is something for Run to do: one of data, change, read and do is set.
type request struct {
	seq    uint64
	data   []byte
	change *raftpb.ConfChange
	read   bool
	do     func(ctx context.Context) error // its error ends Run
	reply  chan outcome                    // capacity 1
}

// Entries carry who proposed them, so that their outcome finds its way back:
// the member's id and a number that it uses once.
const proposalHeader = 16

// Propose puts data in the log and returns when it was applied here, with the
// entry's index and Apply's result. NotLeader: it was not put in the log.
// Unavailable and DeadlineExceeded: it may be, unless the text says otherwise.
func (n *Node) Propose(ctx context.Context, data []byte) (uint64, error) {
	if len(data) > maxProposal {
		return 0, api.Errorf(api.ResourceExhausted, "a change of %d bytes is too large for the raft log: at most %d", len(data), maxProposal)
	}
	seq := n.seq.Add(1)
	b := make([]byte, proposalHeader, proposalHeader+len(data))
	binary.BigEndian.PutUint64(b, n.cfg.ID)
	binary.BigEndian.PutUint64(b[8:], seq)
	return n.call(ctx, request{seq: seq, data: append(b, data...)})
}

// call sends a request to Run and waits for its outcome.
func (n *Node) call(ctx context.Context, r request) (uint64, error) {
	r.reply = make(chan outcome, 1)
	select {
	case n.requests <- r:
	case <-n.done:
		return 0, n.stopped()
	case <-ctx.Done():
		return 0, api.Errorf(api.DeadlineExceeded, "the raft log did not take the request in time: %w", ctx.Err())
	}
	select {
	case o := <-r.reply:
		return o.index, o.err
	case <-n.done:
		select {
		case o := <-r.reply:
			return o.index, o.err
		default:
			return 0, n.stopped()
		}
	case <-ctx.Done():
		return 0, api.Errorf(api.DeadlineExceeded, "no quorum of managers has acknowledged the request in time; a change may still come to pass: %w", ctx.Err())
	}
}

// do runs f in Run's goroutine; its error is for the caller.
func (n *Node) do(ctx context.Context, f func() error) error {
	reply := make(chan error, 1)
	r := request{}
	r.do = func(context.Context) error { reply <- f(); return nil }
	if _, err := n.call(ctx, r); err != nil {
		return err
	}
	return <-reply
}

// request takes a request in Run's goroutine.
func (n *Node) request(ctx context.Context, r request) error {
	var err error
	switch {
	case r.do != nil:
		err := r.do(ctx)
		r.reply <- outcome{}
		return err
	case r.read:
		n.reads.add(n, r.reply)
		return nil
	case r.change != nil:
		if err = n.mayChange(r.change); err == nil {
			err = n.raw.ProposeConfChange(*r.change)
		}
		if err == nil {
			n.changes = append(n.changes, r.seq)
		}
	default:
		err = n.raw.Propose(r.data)
	}
	if err != nil {
		r.reply <- outcome{err: n.refusal(err)}
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting[r.seq] = r.reply
	return nil
}

func (n *Node) refusal(err error) error {
	if !errors.Is(err, raft.ErrProposalDropped) {
		return err
	}
	s := n.raw.BasicStatus()
	switch {
	case s.RaftState != raft.StateLeader && s.Lead == 0:
		return api.Errorf(api.Unavailable, "the swarm has no leader; nothing was changed. It is possible that too few managers are online: make sure that more than half of them are")
	case s.RaftState != raft.StateLeader:
		return api.Errorf(api.NotLeader, "%w", &NotLeaderError{Leader: Member{ID: s.Lead, Address: n.addresses[s.Lead]}})
	case s.LeadTransferee != 0:
		return api.Errorf(api.Unavailable, "leadership is being transferred; nothing was changed: try again")
	}
	return api.Errorf(api.Unavailable, "too many changes wait for a quorum of managers; nothing was changed: try again later")
}

// NotLeaderError is in the chain of a NotLeader error.
type NotLeaderError struct{ Leader Member }

func (e *NotLeaderError) Error() string {
	return fmt.Sprintf("this manager is not the leader: raft member %x at %s is", e.Leader.ID, e.Leader.Address)
}

// answer gives a proposal its outcome, if it is still waited for.
func (n *Node) answer(seq uint64, o outcome) {
	n.mu.Lock()
	reply, ok := n.waiting[seq]
	delete(n.waiting, seq)
	n.mu.Unlock()
	if ok {
		reply <- o
	}
}

func (n *Node) failAll(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for seq, reply := range n.waiting {
		reply <- outcome{err: err}
		delete(n.waiting, seq)
	}
}
