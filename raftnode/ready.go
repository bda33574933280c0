package raftnode

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
)

// ready does what raft wants done, until it wants nothing.
func (n *Node) ready(ctx context.Context) error {
	for n.raw.HasReady() {
		rd := n.raw.Ready()
		// A leader's entries may reach followers' disks while they reach ours
		// (Ongaro's thesis, 10.2.1), if it is durable that we lead.
		if !raft.IsEmptyHardState(rd.HardState) {
			n.hard = rd.HardState
		}
		early := n.hard.Term == n.wal.state.Term && n.hard.Vote == n.wal.state.Vote && n.raw.BasicStatus().RaftState == raft.StateLeader
		if early {
			n.send(ctx, &rd, true)
		}
		n.refuseChanges(rd.Entries)
		if err := n.persist(ctx, &rd); err != nil {
			return err
		}
		if !early {
			n.send(ctx, &rd, true)
		}
		n.send(ctx, &rd, false)
		n.reads.answered(n, rd.ReadStates)
		if err := n.commit(ctx, &rd); err != nil {
			return err
		}
		n.raw.Advance(rd)
		n.publish()
	}
	return nil
}

// persist makes durable what must be before others hear of it.
func (n *Node) persist(ctx context.Context, rd *raft.Ready) error {
	b := batch{entries: rd.Entries}
	if n.hard != n.wal.state {
		b.state = &n.hard
	}
	if !raft.IsEmptySnap(rd.Snapshot) {
		b.mark = &rd.Snapshot.Metadata
		if err := n.takeIncoming(b.mark); err != nil {
			return err
		}
	}
	// A commit index alone is not worth a write: it goes with the next one.
	if rd.MustSync || b.mark != nil {
		if err := n.write(ctx, b); err != nil {
			return err
		}
	}
	if b.mark != nil {
		if err := n.storage.ApplySnapshot(raftpb.Snapshot{Metadata: *b.mark}); err != nil {
			return err
		}
	}
	if err := n.storage.SetHardState(n.hard); err != nil {
		return err
	}
	return n.storage.Append(rd.Entries)
}

// write waits for space when the disk is full.
func (n *Node) write(ctx context.Context, b batch) error {
	for {
		err := n.wal.append(b)
		if err == nil && n.full != nil {
			n.cfg.Log.Info("raft log: the disk has space again", "dir", n.cfg.Dir)
			n.full = nil
			n.publish()
		}
		if !errors.Is(err, errNoSpace) || !n.running {
			return err
		}
		if n.full == nil {
			n.cfg.Log.Error("raft log: this manager can't take part until there is space on its disk", "dir", n.cfg.Dir, "err", err)
			n.full = err
			n.publish()
		}
		n.failAll(n.noSpace())
		if err := n.waitForSpace(ctx); err != nil {
			return err
		}
	}
}

func (n *Node) noSpace() error {
	return api.Errorf(api.Unavailable, "this manager's raft log can't be written (free some space in %s); the change may still come to pass: %w", n.cfg.Dir, n.full)
}

// waitForSpace refuses everything for a while. Nothing must be done with raft now.
func (n *Node) waitForSpace(ctx context.Context) error {
	t := time.NewTimer(spaceRetry)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return errEnd
		case err := <-n.failures:
			return err
		case <-t.C:
			return nil
		case <-n.messages: // dropped, as on a bad network
		case r := <-n.requests:
			if r.do != nil {
				r.end(api.Errorf(api.Unavailable, "this manager's raft log can't be written (free some space in %s): %w", n.cfg.Dir, n.full))
				continue
			}
			r.end(api.Errorf(api.Unavailable, "this manager's raft log can't be written (free some space in %s); nothing was changed: %w", n.cfg.Dir, n.full))
		}
	}
}

// takeIncoming gives a received snapshot its name: from now on a start uses it.
func (n *Node) takeIncoming(m *raftpb.SnapshotMetadata) error {
	in := n.incoming
	if in == nil || in.head.Index != m.Index || in.head.Term != m.Term {
		return fmt.Errorf("raft took a snapshot of entry %d that was not received", m.Index)
	}
	path := filepath.Join(n.cfg.Dir, snapshotName(m.Index, m.Term))
	if err := n.cfg.FS.Rename(in.path, path); err != nil {
		return err
	}
	if err := n.cfg.FS.SyncDir(n.cfg.Dir); err != nil {
		return err
	}
	in.path, in.taken = path, true
	return nil
}

// commit hands what is committed on to be applied.
func (n *Node) commit(ctx context.Context, rd *raft.Ready) error {
	if !raft.IsEmptySnap(rd.Snapshot) {
		n.adopt(n.incoming.head)
		if err := n.hand(ctx, applyBatch{restore: n.incoming.path}); err != nil {
			return err
		}
	}
	if len(rd.CommittedEntries) == 0 {
		return nil
	}
	b := applyBatch{entries: rd.CommittedEntries}
	changed := false
	for i := range b.entries {
		if b.entries[i].Type == raftpb.EntryNormal {
			continue
		}
		changed = true
		if err := n.changeMembers(&b.entries[i]); err != nil {
			return err
		}
	}
	if changed {
		conf := n.conf
		b.conf, b.addresses = &conf, maps.Clone(n.addresses)
		// A start must not fall back to members that are gone.
		if err := n.write(ctx, batch{state: &n.hard}); err != nil {
			return err
		}
	}
	return n.hand(ctx, b)
}

// refuseChanges answers membership changes that raft has quietly replaced by an
// empty entry, since another one is under way.
func (n *Node) refuseChanges(entries []raftpb.Entry) {
	if len(n.changes) == 0 {
		return
	}
	for i := range entries {
		var cc raftpb.ConfChange
		if entries[i].Type == raftpb.EntryConfChange && cc.Unmarshal(entries[i].Data) == nil {
			n.changes = slices.DeleteFunc(n.changes, func(seq uint64) bool { return seq == cc.ID })
		}
	}
	for _, seq := range n.changes {
		n.answer(seq, outcome{err: api.Errorf(api.Unavailable, "another change of the managers is under way; nothing was changed: try again")})
	}
	n.changes = nil
}
