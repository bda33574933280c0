package roles

import (
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
)

// verb is what is to be done.
type verb string

const (
	appoint  verb = "appoint"  // write that the node is a manager now: it gets a certificate and joins
	vote     verb = "vote"     // give a member a vote, once it has caught up
	handOver verb = "handOver" // let another manager lead, since this one is to go
	remove   verb = "remove"   // take a member out of the log
	dismiss  verb = "dismiss"  // write that the node is a worker now
)

// action is one step. The next plan sees what came of it.
type action struct {
	verb   verb
	node   string // appoint, dismiss
	member uint64 // vote, remove
	why    string
}

// plan says what to do so that the members become those whom users want. nodes
// is not older than st. Members are removed one at a time, with others in
// between given a vote, so that the quorum is as large as it can be.
func plan(nodes []*api.Node, st *raftnode.Status) []action {
	of := map[uint64]*api.Node{}
	for _, n := range nodes {
		if n.RaftID != 0 {
			of[n.RaftID] = n
		}
	}
	members := map[uint64]bool{}
	var votes, removals, writes []action
	for _, m := range st.Members {
		members[m.ID] = true
		n := of[m.ID]
		switch {
		case n == nil && m.ID == st.ID: // a new swarm's first manager, whose node is about to be written
		case n == nil:
			removals = append(removals, action{verb: remove, member: m.ID, why: "no node of the swarm has this member's number"})
		case wanted(n) && !m.Voter:
			votes = append(votes, action{verb: vote, member: m.ID, node: n.ID})
		case wanted(n):
		case m.ID == st.ID:
			removals = append(removals, action{verb: handOver, member: m.ID, node: n.ID, why: "it is to be a worker"})
		default:
			removals = append(removals, action{verb: remove, member: m.ID, node: n.ID, why: "the node is to be a worker"})
		}
	}
	for _, n := range nodes {
		switch {
		case wanted(n) && n.Role != swarm.NodeRoleManager:
			writes = append(writes, action{verb: appoint, node: n.ID})
		case !wanted(n) && n.Role == swarm.NodeRoleManager && !members[n.RaftID]:
			writes = append(writes, action{verb: dismiss, node: n.ID})
		}
	}
	return append(append(writes, votes...), first(removals)...)
}

func wanted(n *api.Node) bool { return n.Spec.Role == swarm.NodeRoleManager }

// first picks one removal: members that others can spare before the leader.
func first(removals []action) []action {
	for i, a := range removals {
		if a.verb == remove {
			return removals[i : i+1]
		}
	}
	return removals[:min(len(removals), 1)]
}
