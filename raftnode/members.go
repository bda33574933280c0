package raftnode

import (
	"context"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"go.etcd.io/raft/v3"

	"github.com/legion-swarm/legion/api"
)

// AddLearner adds a member that gets the log but has no vote, or takes a
// voter's vote away. On the leader only, like all changes of members; one at a
// time: Unavailable while another one is under way.
func (n *Node) AddLearner(ctx context.Context, m Member) error {
	return n.reconfigure(ctx, raftpb.ConfChangeAddLearnerNode, m)
}

// Promote gives a learner a vote.
func (n *Node) Promote(ctx context.Context, m Member) error {
	return n.reconfigure(ctx, raftpb.ConfChangeAddNode, m)
}

// Remove takes a member out, for ever: its id must not be used again. Conflict
// if those that stay would have no quorum.
func (n *Node) Remove(ctx context.Context, id uint64) error {
	return n.reconfigure(ctx, raftpb.ConfChangeRemoveNode, Member{ID: id})
}

// SetAddress changes the address at which others reach a member.
func (n *Node) SetAddress(ctx context.Context, m Member) error {
	return n.reconfigure(ctx, raftpb.ConfChangeUpdateNode, m)
}

func (n *Node) reconfigure(ctx context.Context, t raftpb.ConfChangeType, m Member) error {
	if m.ID == 0 {
		return api.Errorf(api.Invalid, "a raft member's id can't be 0")
	}
	seq := n.seq.Add(1)
	_, err := n.call(ctx, request{seq: seq, change: &raftpb.ConfChange{ID: seq, Type: t, NodeID: m.ID, Context: []byte(m.Address)}})
	return err
}

// mayChange refuses to lose the quorum by a removal.
func (n *Node) mayChange(cc *raftpb.ConfChange) error {
	if n.raw.BasicStatus().RaftState != raft.StateLeader {
		return raft.ErrProposalDropped
	}
	if cc.Type != raftpb.ConfChangeRemoveNode && cc.Type != raftpb.ConfChangeAddLearnerNode {
		return nil
	}
	voters, active, voter := 0, 0, false
	n.raw.WithProgress(func(id uint64, t raft.ProgressType, _ tracker.Progress) {
		switch {
		case t == raft.ProgressTypeLearner:
		case id == cc.NodeID:
			voter = true
		default:
			voters++
			if id == n.cfg.ID || n.answers(id) {
				active++
			}
		}
	})
	if voter && active < voters/2+1 {
		return api.Errorf(api.Conflict, "raft member %x can't be removed or demoted: of the %d managers that would stay, %d can be reached, which is no quorum", cc.NodeID, voters, active)
	}
	return nil
}

// changeMembers takes over a committed change.
func (n *Node) changeMembers(e *raftpb.Entry) error {
	var cc raftpb.ConfChange
	if e.Type != raftpb.EntryConfChange {
		return api.Errorf(api.Internal, "entry %d is of unknown type %s: written by a newer version?", e.Index, e.Type)
	}
	if err := unmarshal(&cc, e.Data); err != nil {
		return err
	}
	n.conf, n.renew = *n.raw.ApplyConfChange(cc), true
	if cc.Type == raftpb.ConfChangeRemoveNode {
		delete(n.addresses, cc.NodeID)
		delete(n.heard, cc.NodeID)
	} else if len(cc.Context) > 0 {
		n.addresses[cc.NodeID] = string(cc.Context)
	}
	return nil
}

// TransferLeadership asks another voter to take over; id 0: the one that is
// farthest. It returns at once; watch Changed for what comes of it.
func (n *Node) TransferLeadership(ctx context.Context, id uint64) error {
	return n.do(ctx, func() error {
		if n.raw.BasicStatus().RaftState != raft.StateLeader {
			return n.refusal(raft.ErrProposalDropped)
		}
		if id == 0 {
			id = n.farthest()
		}
		if id == 0 {
			return api.Errorf(api.Conflict, "there is no other manager that could lead")
		}
		n.raw.TransferLeader(id)
		return nil
	})
}

// answers reports whether something came from a member within an election timeout.
// Raft's own RecentActive begins anew each time that it has asked for the same.
func (n *Node) answers(id uint64) bool {
	at, ok := n.heard[id]
	return ok && n.ticks-at <= uint64(n.cfg.ElectionTicks)
}

// farthest is the reachable voter that has most of the log.
func (n *Node) farthest() (best uint64) {
	match := uint64(0)
	n.raw.WithProgress(func(id uint64, t raft.ProgressType, p tracker.Progress) {
		if t == raft.ProgressTypePeer && id != n.cfg.ID && n.answers(id) && p.Match >= match {
			best, match = id, p.Match
		}
	})
	return best
}

// CaughtUp reports whether a member has nearly all of the log and answers. On the
// leader only.
func (n *Node) CaughtUp(ctx context.Context, id uint64) (bool, error) {
	caughtUp := false
	err := n.do(ctx, func() error {
		if n.raw.BasicStatus().RaftState != raft.StateLeader {
			return n.refusal(raft.ErrProposalDropped)
		}
		last, err := n.storage.LastIndex()
		n.raw.WithProgress(func(other uint64, _ raft.ProgressType, p tracker.Progress) {
			if other == id {
				caughtUp = n.answers(id) && p.State == tracker.StateReplicate && p.Match+nearly >= last
			}
		})
		return err
	})
	return caughtUp, err
}

// nearly is how many entries a member may lack to count as caught up.
const nearly = 64

// Suspect tells that a member has very likely died: its process ended the
// connection and takes no new one. If that member leads, this one asks the others
// for their votes at once and doesn't wait for the election timeout. It harms
// nothing if it is wrong: the others refuse while they hear from the leader.
func (n *Node) Suspect(ctx context.Context, id uint64) error {
	suspected := false
	err := n.do(ctx, func() error {
		if s := n.raw.BasicStatus(); s.Lead == id && s.RaftState == raft.StateFollower {
			suspected = true
			return n.raw.ForgetLeader()
		}
		return nil
	})
	if err != nil || !suspected {
		return err
	}
	// Members find out at the same moment. They ask in turn, so that they don't
	// split the votes, and go round again while nobody leads.
	wait := time.Duration(n.turn(id)) * campaignStep
	for range suspectRounds {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		led := true
		err := n.do(ctx, func() error {
			if s := n.raw.BasicStatus(); s.Lead == 0 && s.RaftState != raft.StateLeader {
				led = false
				return n.raw.Campaign()
			}
			return nil
		})
		if err != nil || led {
			return err
		}
		wait = time.Duration(len(n.Status().Voters)) * campaignStep
	}
	return nil
}

// turn is this member's place among the voters without the one that is lost.
func (n *Node) turn(lost uint64) int {
	at := 0
	for _, id := range n.Status().Voters {
		if id != lost && id < n.cfg.ID {
			at++
		}
	}
	return at
}
