package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

// managerStatus is how a manager looks from here.
func (p *managerPart) managerStatus(n *api.Node) *swarm.ManagerStatus {
	st := p.raft.Status()
	s := &swarm.ManagerStatus{Reachability: swarm.ReachabilityUnreachable, Addr: n.ManagerAddr}
	if n.RaftID != 0 && slices.ContainsFunc(st.Members, func(m raftnode.Member) bool { return m.ID == n.RaftID }) {
		s.Leader = st.Leader == n.RaftID
		if s.Leader || p.mesh.Reachable(n.RaftID) {
			s.Reachability = swarm.ReachabilityReachable
		}
	}
	return s
}

// noLeader says that nobody leads, which managers are missing, and what to do.
func (p *managerPart) noLeader() error {
	st := p.raft.Status()
	names := map[uint64]string{}
	for n := range store.List[*api.Node](p.store.View()) {
		names[n.RaftID] = n.Description.Hostname
	}
	var missing []string
	voters := 0
	for _, m := range st.Members {
		if !m.Voter {
			continue
		}
		voters++
		if m.ID != st.ID && !p.mesh.Reachable(m.ID) {
			missing = append(missing, strings.TrimSpace(names[m.ID]+" ("+m.Address+")"))
		}
	}
	if m := p.informed.Load(); m != nil && st.Leader == 0 {
		return api.Errorf(api.Unavailable, "%s", cutOffAdvice(strings.TrimSpace(names[m.ID]+" ("+m.Address+")"), missing))
	}
	advice := leaderlessAdvice(voters, missing)
	if len(st.Members) == 0 {
		advice = "the others have not taken this manager in yet"
		if why := p.refusal.Load(); why != nil {
			advice += ": " + (*why).Error()
		}
	}
	return api.Errorf(api.Unavailable, "%s (%s)", leaderlessDocker, advice)
}

// cutOffAdvice says what to do on a manager that does not hear the leader, whom
// another one hears, and which managers it misses.
func cutOffAdvice(informed string, missing []string) string {
	which := "one of the managers that can't be reached from here: " + strings.Join(missing, ", ")
	if len(missing) == 0 {
		which = "one whose messages don't come through"
	}
	return fmt.Sprintf("This manager does not hear the swarm's leader, which is %s. The swarm works: use another manager, as %s, which hears the leader; mend the network between this one and the leader", which, informed)
}

// leaderlessDocker is Docker's sentence.
const leaderlessDocker = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."

// leaderlessAdvice says what to do on a manager that knows no leader, and which of
// all voters it misses.
func leaderlessAdvice(voters int, missing []string) string {
	there, needed := voters-len(missing), voters/2+1
	switch list := strings.Join(missing, ", "); {
	case there < needed:
		return fmt.Sprintf("%d of %d managers can't be reached: %s. Start %d of them again; if they are lost for ever, run `docker swarm init --force-new-cluster` here",
			len(missing), voters, list, needed-there)
	case len(missing) > 0:
		return fmt.Sprintf("%d of %d managers can be reached: they may be electing a leader right now, try again; if one that can't be reached from here leads, write at another manager: %s",
			there, voters, list)
	}
	return fmt.Sprintf("%d of %d managers can be reached: they may be electing a leader right now; try again", there, voters)
}

// explain makes the error of a write without quorum say what is missing.
func (p *managerPart) explain(err error) error {
	if err == nil || !api.Is(err, api.Unavailable) || p.raft.Status().Leader != 0 {
		return err
	}
	if errors.Is(err, raftnode.ErrMayHappen) {
		return api.Errorf(api.Unavailable, "%w; the change may still come to pass", p.noLeader())
	}
	return p.noLeader()
}

// caughtUp waits until what is read here is what all managers agree on, at most
// so long.
func (p *managerPart) caughtUp(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := p.raft.ReadIndex(ctx)
	if err != nil && ctx.Err() != nil {
		return p.noLeader()
	}
	return err
}

// fresh is caughtUp for reads: without a quorum they show what this manager knew
// last. Who reads finds no leader among the nodes then, and the swarm's error in
// the node's info.
func (p *managerPart) fresh(ctx context.Context) {
	if p.lostQuorum() {
		return
	}
	if err := p.caughtUp(ctx, readTimeout); err != nil {
		p.log.Warn("a read is answered from what this manager knew last", "err", err)
	}
}

// lostQuorum reports whether it is of no use to wait for a quorum: nobody leads,
// and too few managers can be reached to elect one, or those have one that this one
// does not hear.
func (p *managerPart) lostQuorum() bool {
	st := p.raft.Status()
	there := 0
	for _, id := range st.Voters {
		if p.mesh.Reachable(id) {
			there++
		}
	}
	return st.Leader == 0 && (there <= len(st.Voters)/2 || p.informed.Load() != nil)
}
