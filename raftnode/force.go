package raftnode

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
)

// forceNewCluster makes this member the only one: it commits all that is in the
// log and adds entries, committed too, that take the others out. Entries that the
// others had committed are kept, whether this member had heard of it or not; so
// may be a few that nobody had committed, whose proposers were told that they
// might come to pass.
func (n *Node) forceNewCluster() error {
	if n.Empty() && len(n.conf.Voters) == 0 {
		return api.Errorf(api.Invalid, "there is no raft log in %s to make a new cluster from", n.cfg.Dir)
	}
	last, err := n.storage.LastIndex()
	if err != nil {
		return err
	}
	entries, err := n.logged(last)
	if err != nil {
		return err
	}
	members, err := membersAfter(n.conf, entries)
	if err != nil {
		return err
	}
	changes := []raftpb.ConfChange{{Type: raftpb.ConfChangeAddNode, NodeID: n.cfg.ID, Context: []byte(n.cfg.Address)}}
	for _, id := range members {
		if id != n.cfg.ID {
			changes = append(changes, raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode, NodeID: id})
		}
	}
	n.hard.Term++ // the old leader's entries of the term are not ours
	n.hard.Vote = n.cfg.ID
	var added []raftpb.Entry
	for _, cc := range changes {
		data, err := cc.Marshal()
		if err != nil {
			return err
		}
		last++
		added = append(added, raftpb.Entry{Type: raftpb.EntryConfChange, Term: n.hard.Term, Index: last, Data: data})
	}
	n.hard.Commit = last
	if err := n.wal.append(batch{entries: added, state: &n.hard}); err != nil {
		return err
	}
	if err := n.storage.SetHardState(n.hard); err != nil {
		return err
	}
	return n.storage.Append(added)
}

// logged returns the entries after the newest snapshot.
func (n *Node) logged(last uint64) ([]raftpb.Entry, error) {
	if last <= n.snapped {
		return nil, nil
	}
	return n.storage.Entries(n.snapped+1, last+1, 1<<62)
}

// membersAfter returns the ids of all members after the entries.
func membersAfter(conf raftpb.ConfState, entries []raftpb.Entry) ([]uint64, error) {
	ids := slices.Concat(conf.Voters, conf.Learners)
	for i := range entries {
		if entries[i].Type != raftpb.EntryConfChange {
			continue
		}
		var cc raftpb.ConfChange
		if err := unmarshal(&cc, entries[i].Data); err != nil {
			return nil, err
		}
		ids = slices.DeleteFunc(ids, func(id uint64) bool { return id == cc.NodeID })
		if cc.Type != raftpb.ConfChangeRemoveNode {
			ids = append(ids, cc.NodeID)
		}
	}
	return ids, nil
}
