package node

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
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

// Offer takes a proposal of another manager, too.
func (p *managerPart) Offer(from rpc.Peer, term uint64, entry []byte, told func(error)) {
	if err := p.stillManager(from); err != nil {
		told(err)
		return
	}
	p.raft.Offer(term, entry, told)
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

// Former reports whether a node that calls with a manager's certificate is known
// here to have been demoted. A manager that lags must not take one that was
// promoted meanwhile, and may lead by now, for one: that has a newer certificate
// than the one known here.
func (p *managerPart) Former(from rpc.Peer) bool {
	n := store.Get[*api.Node](p.store.View(), from.NodeID)
	if n == nil || n.Role == swarm.NodeRoleManager || len(n.Certificate.Cert) == 0 || from.Leaf == nil {
		return false
	}
	known, err := ca.ParseLeaf(n.Certificate.Cert)
	return err == nil && (from.Leaf.Equal(known) || from.Leaf.NotBefore.Before(known.NotBefore))
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

// justJoined is how long ago a node came that asks to be a manager for the first
// time, at most.
const justJoined = 10 * time.Second

func hasJustJoined(n *api.Node, now time.Time) bool {
	return n.RaftID == 0 && now.Sub(n.CreatedAt) < justJoined
}

func hasTasks(r store.Reader, node string) bool {
	for range store.List[*api.Task](r, store.ByNode(node)) {
		return true
	}
	return false
}

// RefuseEngine says why a Docker Engine can't be a manager. One that has just joined
// as such gives up, and forgets its certificate: its node would stay for ever, and is
// removed.
func (p *managerPart) RefuseEngine(ctx context.Context, from rpc.Peer) error {
	why := api.Errorf(api.Invalid, "a Docker Engine can be a worker of this swarm, not a manager, since its managers are Legion's: join with the worker's token (docker swarm join-token worker)")
	fresh, now := false, p.store.Now()
	_, err := p.store.Update(ctx, func(tx *store.Tx) error {
		n := store.Get[*api.Node](tx, from.NodeID)
		if fresh = n != nil && hasJustJoined(n, now) && !hasTasks(tx, n.ID); !fresh {
			return nil
		}
		u := *n
		u.Spec.Role = swarm.NodeRoleWorker // managers are not removed
		return store.Put(tx, &u)
	})
	if err == nil && fresh {
		err = p.control.NodeRemove(ctx, from.NodeID, true)
	}
	if err != nil {
		p.log.Warn("the node of a Docker Engine that can't be a manager is to be removed by hand", "node", from.NodeID, "err", err)
	} else {
		p.log.Warn("a Docker Engine can't be a manager of this swarm", "node", from.NodeID, "addr", from.Addr, "removed", fresh)
	}
	return why
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
