package raftnode

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
)

// request is something for Run to do: a proposal, a change of members or a
// read.
type request struct {
	data   []byte
	change *raftpb.ConfChange
	do     func() error // runs in Run's goroutine
	reply  chan outcome
}

// Propose puts data in the log and returns when it was applied here, with
// Apply's result. NotLeader and Unavailable: it is not known whether it will be.
func (n *Node) Propose(ctx context.Context, data []byte) (uint64, error) {
	return n.call(ctx, request{data: data})
}

// AddLearner, Promote and Remove change the members; TransferLeadership asks
// another member to lead.
func (n *Node) AddLearner(ctx context.Context, m Member) error {
	return n.reconfigure(ctx, raftpb.ConfChangeAddLearnerNode, m)
}

// Promote makes a learner a voter.
func (n *Node) Promote(ctx context.Context, m Member) error {
	return n.reconfigure(ctx, raftpb.ConfChangeAddNode, m)
}

// Remove takes a member out.
func (n *Node) Remove(ctx context.Context, id uint64) error {
	return n.reconfigure(ctx, raftpb.ConfChangeRemoveNode, Member{ID: id})
}

func (n *Node) reconfigure(ctx context.Context, t raftpb.ConfChangeType, m Member) error {
	_, err := n.call(ctx, request{change: &raftpb.ConfChange{Type: t, NodeID: m.ID, Context: []byte(m.Address)}})
	return err
}

// TransferLeadership asks another voter to take over. It returns at once; watch
// Changed for what comes of it.
func (n *Node) TransferLeadership(ctx context.Context, id uint64) error {
	_, err := n.call(ctx, request{do: func() error { n.raw.TransferLeader(id); return nil }})
	return err
}

// Step takes a message of another member. It never blocks: what is too much is
// dropped, as on a bad network.
func (n *Node) Step(m raftpb.Message) {
	select {
	case n.messages <- m:
	default:
	}
}

// Unreachable tells that a message could not be delivered.
func (n *Node) Unreachable(ctx context.Context, id uint64) error {
	_, err := n.call(ctx, request{do: func() error { n.raw.ReportUnreachable(id); return nil }})
	return err
}

// Run drives the member until ctx ends (nil) or the log can't be written (the
// reason). Everything that waits is then answered.
func (n *Node) Run(ctx context.Context) (err error) {
	defer func() {
		st := n.Status()
		st.Err, st.IsLeader = err, false
		n.status.Store(&st)
		close(n.done)
		n.wake()
		if n.writing {
			err = errors.Join(err, n.snapshotDone(<-n.snapEnd))
		}
		n.failAll(n.stopped())
		err = errors.Join(err, n.close())
	}()
	if c := n.raw.BasicStatus(); c.RaftState == raft.StateFollower && n.alone() {
		if err := n.raw.Campaign(); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(n.cfg.Tick)
	defer ticker.Stop()
	for {
		if err := n.ready(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			n.raw.Tick()
		case m := <-n.messages:
			n.step(m)
		case r := <-n.requests:
			n.request(r)
		case s := <-n.snapEnd:
			if err := n.snapshotDone(s); err != nil {
				return err
			}
		}
		n.drain()
	}
}

// alone reports whether this member is the only voter.
func (n *Node) alone() bool {
	voters := n.raw.Status().Config.Voters.IDs()
	_, ok := voters[n.cfg.ID]
	return ok && len(voters) == 1
}

// drain takes all that is there, so that one fsync serves it.
func (n *Node) drain() {
	for range maxPending {
		select {
		case m := <-n.messages:
			n.step(m)
		case r := <-n.requests:
			n.request(r)
		default:
			return
		}
	}
}

func (n *Node) step(m raftpb.Message) {
	if err := n.raw.Step(m); err != nil {
		n.cfg.Log.Debug("raft message dropped", "from", m.From, "type", m.Type.String(), "err", err)
	}
}

// Entries carry who proposed them, so that their outcome finds its way back.
const proposalHeader = 16

func (n *Node) request(r request) {
	if r.do != nil {
		r.reply <- outcome{err: r.do()}
		return
	}
	n.seq++
	var err error
	if r.change != nil {
		r.change.ID = n.seq
		err = n.raw.ProposeConfChange(*r.change)
	} else {
		b := make([]byte, proposalHeader, proposalHeader+len(r.data))
		binary.BigEndian.PutUint64(b, n.cfg.ID)
		binary.BigEndian.PutUint64(b[8:], n.seq)
		err = n.raw.Propose(append(b, r.data...))
	}
	switch {
	case errors.Is(err, raft.ErrProposalDropped) && n.raw.BasicStatus().RaftState != raft.StateLeader:
		r.reply <- outcome{err: n.notLeader()}
	case errors.Is(err, raft.ErrProposalDropped):
		r.reply <- outcome{err: api.Errorf(api.Unavailable, "too many changes are waiting for a quorum of managers")}
	case err != nil:
		r.reply <- outcome{err: fmt.Errorf("raft: %w", err)}
	default:
		n.waiting[n.seq] = r.reply
	}
}

func (n *Node) notLeader() error {
	lead := n.raw.BasicStatus().Lead
	if lead == 0 {
		return api.Errorf(api.Unavailable, "the swarm has no leader: it is possible that too few managers are online. Make sure more than half of the managers are online")
	}
	return api.Errorf(api.NotLeader, "this manager is not the leader: %x is", lead)
}

// ready does what raft wants done, until it wants nothing.
func (n *Node) ready() error {
	for n.raw.HasReady() {
		rd := n.raw.Ready()
		if err := n.persist(&rd); err != nil {
			return err
		}
		n.send(rd.Messages)
		if err := n.apply(rd.CommittedEntries); err != nil {
			return err
		}
		n.raw.Advance(rd)
		if rd.SoftState != nil || len(rd.CommittedEntries) > 0 {
			n.publish()
		}
		n.maybeSnapshot()
	}
	return nil
}

// persist makes durable what must be before messages go out.
func (n *Node) persist(rd *raft.Ready) error {
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := n.receive(&rd.Snapshot); err != nil {
			return err
		}
	}
	if n.wal.full() && len(rd.Entries) > 0 {
		if err := n.roll(); err != nil {
			return err
		}
	}
	var buf []byte
	for i := range rd.Entries {
		var err error
		if buf, err = encodeEntry(buf[:0], &rd.Entries[i], n.cfg.Sealer); err != nil {
			return err
		}
		n.wal.add(recordEntry, buf)
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		b, err := rd.HardState.Marshal()
		if err != nil {
			return err
		}
		n.wal.add(recordState, b)
		if err := n.storage.SetHardState(rd.HardState); err != nil {
			return err
		}
	}
	if err := n.wal.flush(rd.MustSync); err != nil {
		return err
	}
	return n.storage.Append(rd.Entries)
}

// roll begins a new segment with the state that earlier ones hold.
func (n *Node) roll() error {
	if err := n.wal.flush(true); err != nil {
		return err
	}
	if err := n.wal.roll(); err != nil {
		return err
	}
	state, _, err := n.storage.InitialState()
	if err != nil {
		return err
	}
	b, err := state.Marshal()
	if err != nil {
		return err
	}
	n.wal.add(recordState, b)
	return nil
}

func (n *Node) send(messages []raftpb.Message) {
	if n.cfg.Transport == nil {
		return
	}
	for _, m := range messages {
		if m.Type == raftpb.MsgSnap {
			data, err := readAll(filepath.Join(n.cfg.Dir, snapshotName(&m.Snapshot.Metadata)), n.cfg.Sealer)
			if err != nil {
				n.cfg.Log.Error("raft: a snapshot can't be read for another manager", "to", m.To, "err", err)
				n.raw.ReportSnapshot(m.To, raft.SnapshotFailure)
				continue
			}
			m.Snapshot.Data = data
		}
		n.cfg.Transport.Send(m)
	}
}

// receive takes a snapshot from the leader.
func (n *Node) receive(s *raftpb.Snapshot) error {
	err := writeSnapshot(n.cfg.Dir, &s.Metadata, n.cfg.Sealer, func(w io.Writer) error {
		_, err := w.Write(s.Data)
		return err
	})
	if err != nil {
		return err
	}
	if err := n.cfg.Applier.Restore(bytes.NewReader(s.Data)); err != nil {
		return fmt.Errorf("snapshot from the leader: %w", err)
	}
	n.applied, n.snapped, n.conf = s.Metadata.Index, s.Metadata.Index, s.Metadata.ConfState
	return n.storage.ApplySnapshot(raftpb.Snapshot{Metadata: s.Metadata})
}

func (n *Node) apply(entries []raftpb.Entry) error {
	for i := range entries {
		e := &entries[i]
		if e.Index <= n.applied {
			continue
		}
		if err := n.applyOne(e); err != nil {
			return fmt.Errorf("apply: %w", err)
		}
		n.applied = e.Index
	}
	return nil
}

func (n *Node) applyOne(e *raftpb.Entry) error {
	if e.Type != raftpb.EntryNormal {
		return n.applyChange(e)
	}
	if len(e.Data) == 0 { // a new leader's first entry
		return nil
	}
	if len(e.Data) < proposalHeader {
		return fmt.Errorf("%w: entry %d has no header", ErrCorrupt, e.Index)
	}
	result, fatal := n.cfg.Applier.Apply(e.Index, e.Data[proposalHeader:])
	if fatal != nil {
		return fatal
	}
	if binary.BigEndian.Uint64(e.Data) == n.cfg.ID {
		n.answer(binary.BigEndian.Uint64(e.Data[8:]), outcome{e.Index, result})
	}
	return nil
}

func (n *Node) applyChange(e *raftpb.Entry) error {
	var cc raftpb.ConfChange
	if err := cc.Unmarshal(e.Data); err != nil {
		return fmt.Errorf("%w: entry %d: %w", ErrCorrupt, e.Index, err)
	}
	n.conf = *n.raw.ApplyConfChange(cc)
	n.answer(cc.ID, outcome{index: e.Index})
	return nil
}

func (n *Node) answer(seq uint64, o outcome) {
	if reply, ok := n.waiting[seq]; ok {
		delete(n.waiting, seq)
		reply <- o
	}
}

func (n *Node) failAll(err error) {
	for seq := range n.waiting {
		n.answer(seq, outcome{err: err})
	}
}

// publish makes the newest status, and wakes who waits for a change of leader.
func (n *Node) publish() {
	s := n.raw.Status()
	st := &Status{ID: n.cfg.ID, Leader: s.Lead, Term: s.Term, Applied: n.applied, SnapshotIndex: n.snapped,
		Voters: n.conf.Voters, Learners: n.conf.Learners}
	st.IsLeader = s.RaftState == raft.StateLeader && n.appliedTerm() == s.Term
	old := n.status.Swap(st)
	if old != nil && old.IsLeader && !st.IsLeader {
		n.failAll(n.notLeader())
	}
	if old == nil || old.IsLeader != st.IsLeader || old.Leader != st.Leader || old.Term != st.Term || len(old.Voters) != len(st.Voters) {
		n.wake()
	}
}

// appliedTerm is the term of the last entry that was applied.
func (n *Node) appliedTerm() uint64 {
	term, err := n.storage.Term(n.applied)
	if err != nil {
		return 0
	}
	return term
}

func (n *Node) wake() {
	next := make(chan struct{})
	if old := n.changed.Swap(&next); old != nil {
		close(*old)
	}
}
