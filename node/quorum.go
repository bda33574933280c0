package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
)

// transport carries raft's messages over the mesh.
type transport struct{ mesh *rpc.Mesh }

var _ raftnode.Transport = transport{}

func (t transport) Send(to raftnode.Member, message []byte) { t.mesh.Send(to.ID, to.Address, message) }

func (t transport) SendSnapshot(ctx context.Context, to raftnode.Member, message []byte, data io.Reader) error {
	return t.mesh.SendSnapshot(ctx, to.ID, to.Address, message, data)
}

func (t transport) Propose(ctx context.Context, to raftnode.Member, term uint64, entry []byte) error {
	return t.mesh.Propose(ctx, to.ID, to.Address, term, entry)
}

var _ rpc.RaftHandler = (*managerPart)(nil)

// Step takes a raft message of another manager.
func (p *managerPart) Step(message []byte) error { return p.raft.Step(message) }

// StepSnapshot takes a snapshot of another manager.
func (p *managerPart) StepSnapshot(ctx context.Context, message []byte, data io.Reader) error {
	return p.raft.StepSnapshot(ctx, message, data)
}

// Accept takes a proposal of another manager.
func (p *managerPart) Accept(ctx context.Context, from rpc.Peer, term uint64, entry []byte) error {
	if err := p.stillManager(from); err != nil {
		return err
	}
	return p.raft.Accept(ctx, term, entry)
}

// stillManager refuses nodes that have a manager's certificate but are none any
// more.
func (p *managerPart) stillManager(from rpc.Peer) error {
	n := store.Get[*api.Node](p.store.View(), from.NodeID)
	if n == nil || n.Role != swarm.NodeRoleManager {
		return api.Errorf(api.PermissionDenied, "node %s is not a manager of the swarm", from.NodeID)
	}
	return nil
}

// Join makes a manager a member, if need be through the leader.
func (p *managerPart) Join(ctx context.Context, from rpc.Peer, m rpc.Member) ([]rpc.Member, error) {
	if err := p.stillManager(from); err != nil {
		return nil, err
	}
	st := p.raft.Status()
	switch {
	case st.IsLeader:
		if err := p.keeper.Join(ctx, m.NodeID, raftnode.Member{ID: m.RaftID, Address: m.Addr}); err != nil {
			return nil, err
		}
		return p.members(), nil
	case from.NodeID != m.NodeID: // it was passed on once already
		return nil, p.noLeader()
	case st.Leader == 0 || st.Leader == st.ID:
		return nil, p.noLeader()
	}
	conn := p.mesh.Conn(st.Leader)
	if conn == nil {
		return nil, p.noLeader()
	}
	return rpc.Join(ctx, conn, m)
}

// Members returns the members as a quorum knows them.
func (p *managerPart) Members(ctx context.Context) ([]rpc.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if _, err := p.raft.ReadIndex(ctx); err != nil {
		return nil, err
	}
	return p.members(), nil
}

func (p *managerPart) members() []rpc.Member {
	of := map[uint64]string{}
	for n := range store.List[*api.Node](p.store.View()) {
		of[n.RaftID] = n.ID
	}
	var out []rpc.Member
	for _, m := range p.raft.Status().Members {
		out = append(out, rpc.Member{RaftID: m.ID, NodeID: of[m.ID], Addr: m.Address})
	}
	return out
}

// Heard tells that a manager says where it can be reached.
func (p *managerPart) Heard(id uint64, addr string) { p.mesh.Heard(id, addr) }

// Knows reports whether the raft id is a member's. A manager that knows of no
// member at all is new.
func (p *managerPart) Knows(id uint64) bool {
	ms := p.raft.Status().Members
	return len(ms) == 0 || slices.ContainsFunc(ms, func(m raftnode.Member) bool { return m.ID == id })
}

// NodeID is this node's.
func (p *managerPart) NodeID() string { return p.state.NodeID }

func (p *managerPart) unreachable(ctx context.Context, id uint64) {
	if err := p.raft.Unreachable(ctx, id); err != nil && ctx.Err() == nil {
		p.log.Debug("a lost message was not reported", "raft", id, "err", err)
	}
}

func (p *managerPart) suspect(ctx context.Context, id uint64) {
	if err := p.raft.Suspect(ctx, id); err != nil && ctx.Err() == nil {
		p.log.Debug("a manager's death was not reported", "raft", id, "err", err)
	}
}

// isStranger notes that a manager does not know this one.
func (p *managerPart) isStranger(_ context.Context, conn *grpc.ClientConn) {
	select {
	case p.stranger <- conn:
	default:
	}
}

// followMembers keeps the mesh connected to whom the log has as members.
func (p *managerPart) followMembers(ctx context.Context) {
	for {
		changed := p.raft.Changed()
		peers := map[uint64]string{}
		for _, m := range p.raft.Status().Members {
			peers[m.ID] = m.Address
		}
		if len(peers) > 0 { // else join knows better
			p.mesh.SetPeers(peers)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

const (
	// readTimeout bounds how long a read waits for a quorum.
	readTimeout = 2 * time.Second
	// handOverTimeout bounds how long a manager that stops waits for another one
	// to take the lead.
	handOverTimeout = time.Second
	joinPause       = 100 * time.Millisecond
	joinPauseMax    = 3 * time.Second
	// leaderless is how long nobody leads until this manager asks the others
	// whether it is still one of them.
	leaderless = 3 * time.Second
)

// handOver lets another manager take the lead before this one stops.
func (p *managerPart) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
	defer cancel()
	for {
		changed := p.raft.Changed()
		st := p.raft.Status()
		if st.Leader != st.ID || len(st.Voters) < 2 || !slices.ContainsFunc(st.Voters, func(id uint64) bool { return id != st.ID && p.mesh.Reachable(id) }) {
			return
		}
		if err := p.raft.TransferLeadership(ctx, 0); err != nil {
			return // the others will notice
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// joining makes this manager a member if its log is empty, and waits until it
// knows all that the swarm knows.
func (p *managerPart) joining(ctx context.Context) error {
	pause := joinPause
	for len(p.raft.Status().Members) == 0 {
		err := p.join(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		p.log.Warn("this manager could not join the others yet; will try again", "err", err)
		changed := p.raft.Changed()
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
		}
		t.Stop()
		pause = min(2*pause, joinPauseMax)
	}
	return p.catchUp(ctx)
}

// join asks the managers that the node knows, one after the other.
func (p *managerPart) join(ctx context.Context) error {
	err := error(api.Errorf(api.Unavailable, "no manager of the swarm is known to this node"))
	for _, addr := range p.peers() {
		if err = p.joinAt(ctx, addr); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return err
}

func (p *managerPart) joinAt(ctx context.Context, addr string) error {
	conn, err := rpc.DialManager(addr, p.creds)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	ctx, cancel := context.WithTimeout(ctx, 2*readTimeout)
	defer cancel()
	members, err := rpc.Join(ctx, conn, rpc.Member{RaftID: p.state.RaftID, NodeID: p.state.NodeID, Addr: p.state.AdvertiseAddr})
	if err != nil {
		return fmt.Errorf("manager at %s: %w", addr, err)
	}
	peers := map[uint64]string{}
	for _, m := range members {
		peers[m.RaftID] = m.Addr
	}
	p.mesh.SetPeers(peers)
	return nil
}

// catchUp waits until a quorum agrees that this manager knows the swarm.
func (p *managerPart) catchUp(ctx context.Context) error {
	for ctx.Err() == nil {
		if p.genesis != nil || p.forced {
			return nil // see found
		}
		if _, err := p.raft.ReadIndex(ctx); err == nil && store.Count[*api.Cluster](p.store.View()) > 0 {
			p.nowKnows()
			return nil
		}
		t := time.NewTimer(joinPause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	return nil
}

// watchMembership ends with errNoManager when the others have taken this manager
// out of the log.
func (p *managerPart) watchMembership(ctx context.Context) error {
	joined := false
	for {
		changed := p.raft.Changed()
		st := p.raft.Status()
		is := slices.ContainsFunc(st.Members, func(m raftnode.Member) bool { return m.ID == st.ID })
		if joined && !is {
			return errNoManager
		}
		joined = joined || is
		wait := time.Hour
		if joined && st.Leader == 0 {
			wait = leaderless
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case conn := <-p.stranger:
			if joined && p.isOut(ctx, conn) {
				return errNoManager
			}
		case <-t.C:
			for _, m := range st.Members {
				if conn := p.mesh.Conn(m.ID); conn != nil && p.isOut(ctx, conn) {
					return errNoManager
				}
			}
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

// isOut reports whether a manager says, with a quorum behind it, that this one is
// not a member.
func (p *managerPart) isOut(ctx context.Context, conn *grpc.ClientConn) bool {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	members, err := rpc.Members(ctx, conn)
	return err == nil && len(members) > 0 && !slices.ContainsFunc(members, func(m rpc.Member) bool { return m.RaftID == p.state.RaftID })
}

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
	const docker = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."
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
	if voters-len(missing) > voters/2 {
		return api.Errorf(api.Unavailable, "%s (%d of %d managers can be reached: they may be electing a leader right now; try again)", docker, voters-len(missing), voters)
	}
	return api.Errorf(api.Unavailable, "%s (%d of %d managers can't be reached: %s. Start %d of them again; if they are lost for ever, run `docker swarm init --force-new-cluster` here)",
		docker, len(missing), voters, strings.Join(missing, ", "), voters/2+1-(voters-len(missing)))
}

// explain makes the error of a write without quorum say what is missing.
func (p *managerPart) explain(err error) error {
	if err == nil || !api.Is(err, api.Unavailable) || p.raft.Status().Leader != 0 {
		return err
	}
	if errors.Is(err, raftnode.ErrMayHappen) {
		return api.Errorf(api.Unavailable, "%w The change may still come to pass", p.noLeader())
	}
	return p.noLeader()
}

// fresh waits until what is read here is what all managers agree on. Without a
// quorum it gives up soon, and reads show what this manager knew last.
func (p *managerPart) fresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if _, err := p.raft.ReadIndex(ctx); err != nil {
		p.log.Debug("a read without quorum", "err", err)
	}
}

// followSettings has raft take over what the swarm's spec says of it.
func (p *managerPart) followSettings(ctx context.Context) error {
	for {
		view, w := p.store.Watch(store.KindCluster)
		err := p.settings(ctx, view, w)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (p *managerPart) settings(ctx context.Context, view *store.View, w *store.Watcher) error {
	for {
		for c := range store.List[*api.Cluster](view) {
			r := raftnode.Retention{SnapshotInterval: c.Spec.Raft.SnapshotInterval, SlowFollowerEntries: c.Spec.Raft.LogEntriesForSlowFollowers}
			if k := c.Spec.Raft.KeepOldSnapshots; k != nil {
				r.KeepOldSnapshots = *k
			}
			if err := p.raft.SetRetention(ctx, r); err != nil {
				return err
			}
		}
		if _, err := w.Next(ctx); err != nil {
			return err
		}
		view = p.store.View()
	}
}
