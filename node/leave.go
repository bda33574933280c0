package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Docker's sentences.
const (
	leavesManager = "You are attempting to leave the swarm on a node that is participating as a manager. "
	leavesLast    = "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
	leavesUnknown = "Doing so may lose the consensus of your cluster. "
	leavesRest    = "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."
)

// farewellTimeout bounds how long a manager that leaves waits for the others to
// take it out of their number.
const farewellTimeout = 5 * time.Second

// SwarmLeave ends this node's membership. A manager leaves only with force; the
// others then go on without counting it, if they can.
func (s *swarmNode) SwarmLeave(ctx context.Context, force bool) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	cur, err := s.current()
	if cur == nil && err == nil {
		return api.Errorf(api.Unavailable, "%s", noSwarm)
	}
	if !force && errors.Is(err, errLocked) {
		return api.Errorf(api.Unavailable, "%s", lockedLeave)
	}
	if !force {
		if why := s.leaveWarning(cur); why != "" {
			return api.Errorf(api.Unavailable, "%s", why)
		}
	}
	if cur != nil {
		s.resignFirst(ctx, cur)
	}
	s.end(agent.ErrLeaving)
	if err := s.removeTasks(ctx); err != nil {
		return err
	}
	if s.networks != nil {
		s.networks.ForgetSwarm()
	}
	if err := forget(s.dir); err != nil {
		return err
	}
	s.settle()
	return nil
}

// leaveWarning says why this node should not leave; empty for workers. cur is nil
// when the member has failed.
func (s *swarmNode) leaveWarning(cur *running) string {
	if cur == nil {
		if state, err := loadMembership(s.dir); err == nil && state != nil && state.RaftID == 0 {
			return ""
		}
		return leavesManager + leavesUnknown + leavesRest
	}
	if !cur.isManager() {
		return ""
	}
	p := cur.managing()
	if p == nil {
		return leavesManager + leavesUnknown + leavesRest
	}
	reachable, unreachable := p.managerCount()
	switch {
	case reachable+unreachable <= 1:
		return leavesManager + leavesLast
	case reachable-1 < (reachable+unreachable)/2+1:
		return leavesManager + fmt.Sprintf("Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. ", reachable-1, reachable+unreachable) + leavesRest
	}
	return leavesManager + leavesRest
}

// managerCount counts the managers by whether they can be reached.
func (p *managerPart) managerCount() (reachable, unreachable int) {
	for n := range store.List[*api.Node](p.store.View()) {
		if n.Role != swarm.NodeRoleManager {
			continue
		}
		if p.managerStatus(n).Reachability == swarm.ReachabilityReachable {
			reachable++
		} else {
			unreachable++
		}
	}
	return reachable, unreachable
}

// resignFirst makes this node a worker if it is one manager of several, so that
// the others don't count it any more. When that does not succeed soon, it leaves
// without.
func (s *swarmNode) resignFirst(ctx context.Context, cur *running) {
	p := cur.managing()
	if p == nil || len(p.raft.Status().Members) < 2 || p.lostQuorum() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	_, err := p.store.Update(ctx, func(tx *store.Tx) error {
		n := store.Get[*api.Node](tx, p.state.NodeID)
		if n == nil {
			return nil
		}
		u := *n
		u.Spec.Role = swarm.NodeRoleWorker
		return store.Put(tx, &u)
	})
	for err == nil && cur.isManager() {
		_, changed := cur.watch()
		if !cur.isManager() {
			return
		}
		select {
		case <-changed:
		case <-cur.done:
			return
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		s.log.Warn("this manager leaves without having been demoted: run `docker node demote` and `docker node rm` for it on another manager", "node", p.state.NodeID, "err", err)
	}
}
