package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
)

// Step takes a message of another member. It never blocks: what is too much is
// dropped, as on a bad network. Invalid if it is no message.
func (n *Node) Step(message []byte) error {
	m, err := parseMessage(message)
	if err != nil {
		return err
	}
	if m.Type == raftpb.MsgSnap {
		return api.Errorf(api.Invalid, "raft message: a snapshot needs its data")
	}
	select {
	case n.messages <- m:
	default:
	}
	return nil
}

func parseMessage(b []byte) (m raftpb.Message, err error) {
	if len(b) > maxMessage {
		return m, api.Errorf(api.Invalid, "raft message of %d bytes: at most %d", len(b), maxMessage)
	}
	if err := m.Unmarshal(b); err != nil {
		return m, api.Errorf(api.Invalid, "raft message: %w", err)
	}
	if m.From == 0 || raft.IsLocalMsgTarget(m.From) || !wellFormed(&m) {
		return m, api.Errorf(api.Invalid, "raft message of type %d from %x: not one that a manager sends to another", m.Type, m.From)
	}
	return m, nil
}

// wellFormed refuses what raft would panic on.
func wellFormed(m *raftpb.Message) bool {
	switch m.Type {
	case raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp, raftpb.MsgHeartbeat,
		raftpb.MsgHeartbeatResp, raftpb.MsgTransferLeader, raftpb.MsgTimeoutNow:
		return true
	case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		return len(m.Entries) == 1
	case raftpb.MsgSnap:
		return m.Snapshot != nil && m.Snapshot.Metadata.Index > 0
	case raftpb.MsgApp:
		for i := range m.Entries {
			if m.Entries[i].Index != m.Index+1+uint64(i) || m.Entries[i].Term > m.Term || len(m.Entries[i].Data) > maxEntry {
				return false
			}
		}
		return true
	}
	return false
}

func (n *Node) step(m raftpb.Message) {
	if m.To != n.cfg.ID {
		n.cfg.Log.Warn("raft: a message for another member was dropped", "from", m.From, "to", m.To)
		return
	}
	if _, known := n.addresses[m.From]; known {
		n.heard[m.From] = n.ticks
	}
	if err := n.raw.Step(m); err != nil {
		n.cfg.Log.Debug("raft: a message was dropped", "from", m.From, "type", m.Type.String(), "err", err)
	}
}

// Unreachable tells that a message could not be delivered.
func (n *Node) Unreachable(ctx context.Context, id uint64) error {
	return n.do(ctx, func() error { n.raw.ReportUnreachable(id); return nil })
}

// send passes messages on: those that a leader may send before its own log is
// durable, or the others.
func (n *Node) send(ctx context.Context, rd *raft.Ready, early bool) {
	messages, committed := rd.Messages, rd.CommittedEntries
	if n.cfg.Transport == nil {
		return
	}
	for i := range messages {
		m := &messages[i]
		isEarly := m.Type == raftpb.MsgApp || m.Type == raftpb.MsgHeartbeat
		if isEarly != early {
			continue
		}
		if m.Type == raftpb.MsgApp && n.hold(m, committed) {
			continue
		}
		b := n.encode(m)
		if b == nil {
			continue
		}
		to := Member{ID: m.To, Address: n.addresses[m.To]}
		if m.Type == raftpb.MsgSnap {
			n.sendSnapshot(ctx, to, b, m.Snapshot.Metadata)
			continue
		}
		n.cfg.Transport.Send(to, b)
	}
}

// encode returns nil, having said so, for what can't be encoded.
func (n *Node) encode(m *raftpb.Message) []byte {
	b, err := m.Marshal()
	if err != nil {
		n.cfg.Log.Error("raft: a message can't be encoded", "to", m.To, "type", m.Type.String(), "err", err)
		return nil
	}
	return b
}

// sendSnapshot streams the file, in clear: the transport encrypts.
func (n *Node) sendSnapshot(ctx context.Context, to Member, message []byte, meta raftpb.SnapshotMetadata) {
	if !slices.Contains(meta.ConfState.Voters, to.ID) && !slices.Contains(meta.ConfState.Learners, to.ID) {
		// It is older than the member, which would refuse it.
		n.raw.ReportSnapshot(to.ID, raft.SnapshotFailure)
		if err := n.hand(ctx, applyBatch{snapshot: true}); err != nil {
			n.cfg.Log.Error("raft: a snapshot for a new manager can't be taken", "to", to.ID, "err", err)
		}
		return
	}
	path := filepath.Join(n.cfg.Dir, snapshotName(meta.Index, meta.Term))
	h, r, file, err := openSnapshot(n.cfg.FS, path, n.wal.sealer)
	if err != nil {
		n.cfg.Log.Error("raft: a snapshot can't be read for another manager", "to", to.ID, "err", err)
		n.raw.ReportSnapshot(to.ID, raft.SnapshotFailure)
		return
	}
	n.tasks.Go(func() {
		pr, pw := io.Pipe()
		encoded := make(chan struct{})
		go func() {
			defer close(encoded)
			_, err := encodeSnapshot(pw, nil, h, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
			pw.CloseWithError(err)
		}()
		err := n.cfg.Transport.SendSnapshot(ctx, to, message, pr)
		pr.CloseWithError(io.ErrClosedPipe) // ends the encoder if it was not read to the end
		<-encoded
		err = errors.Join(err, file.Close())
		result := raft.SnapshotFinish
		if err != nil {
			result = raft.SnapshotFailure
			n.cfg.Log.Warn("raft: a snapshot could not be sent", "to", to.ID, "address", to.Address, "err", err)
		}
		if err := n.do(ctx, func() error { n.raw.ReportSnapshot(to.ID, result); return nil }); err != nil {
			n.cfg.Log.Debug("raft: the end of a snapshot was not reported", "to", to.ID, "err", err)
		}
	})
}

// incoming is a snapshot that was received.
type incoming struct {
	path    string
	head    *snapshotHead
	taken   bool        // by raft
	claimed atomic.Bool // by Run, or by who gave up waiting for it
}

// StepSnapshot takes a snapshot of another member. It returns when it is on the
// disk, checked, and raft has taken or refused it. Only one at a time.
func (n *Node) StepSnapshot(ctx context.Context, message []byte, data io.Reader) error {
	m, err := parseMessage(message)
	if err != nil {
		return err
	}
	if m.Type != raftpb.MsgSnap || m.Snapshot == nil || m.To != n.cfg.ID {
		return api.Errorf(api.Invalid, "raft message of type %s for %x: not a snapshot for this manager", m.Type, m.To)
	}
	if n.taking.Swap(true) {
		return api.Errorf(api.Unavailable, "this manager is receiving another snapshot")
	}
	defer n.taking.Store(false)
	in := &incoming{path: filepath.Join(n.cfg.Dir, fmt.Sprintf("received-%016x.tmp", n.seq.Add(1)))}
	if in.head, err = n.receive(in.path, data); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	meta := m.Snapshot.Metadata
	if meta.Index != in.head.Index || meta.Term != in.head.Term {
		err = api.Errorf(api.Invalid, "the snapshot is of entry %d, the message says %d", in.head.Index, meta.Index)
		return errors.Join(err, n.cfg.FS.Remove(in.path))
	}
	r := request{do: func(ctx context.Context) error {
		if in.claimed.Swap(true) {
			return nil
		}
		n.incoming = in
		n.step(m)
		err := n.ready(ctx)
		n.incoming = nil
		if err == nil && !in.taken {
			err = n.cfg.FS.Remove(in.path)
		}
		return err
	}}
	_, err = n.call(ctx, r)
	if err != nil && !in.claimed.Swap(true) {
		err = errors.Join(err, n.cfg.FS.Remove(in.path))
	}
	return err
}

// receive writes a snapshot to the disk, under our own encryption.
func (n *Node) receive(path string, data io.Reader) (*snapshotHead, error) {
	h, r, err := decodeSnapshot(data, nil)
	if err != nil {
		return nil, err
	}
	_, err = writeSnapshot(n.cfg.FS, path, n.key().sealer, h, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
	return h, err
}
