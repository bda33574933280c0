package main

import (
	"context"
	"io"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
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

func noStranger(context.Context, *grpc.ClientConn) {}

// handler takes what other managers send.
type handler struct{ *process }

var _ rpc.RaftHandler = handler{}

// Step takes a raft message.
func (h handler) Step(message []byte) error { return h.raft.Step(message) }

// StepSnapshot takes a snapshot.
func (h handler) StepSnapshot(ctx context.Context, message []byte, data io.Reader) error {
	return h.raft.StepSnapshot(ctx, message, data)
}

// Accept takes a proposal.
func (h handler) Accept(ctx context.Context, _ rpc.Peer, term uint64, entry []byte) error {
	return h.raft.Accept(ctx, term, entry)
}

// Offer takes a proposal, too.
func (h handler) Offer(_ rpc.Peer, term uint64, entry []byte, told func(error)) {
	h.raft.Offer(term, entry, told)
}

// Join is refused: the first manager takes in the others by itself.
func (h handler) Join(context.Context, rpc.Peer, rpc.Member) ([]rpc.Member, error) {
	return nil, api.Errorf(api.Unimplemented, "nobody joins here")
}

// Members is not asked for.
func (h handler) Members(context.Context) ([]rpc.Member, error) { return nil, nil }

// RefuseEngine is not asked for.
func (h handler) RefuseEngine(context.Context, rpc.Peer) error {
	return api.Errorf(api.Invalid, "no Docker Engine is here")
}

// Heard tells where another manager is.
func (h handler) Heard(id uint64, addr string) { h.mesh.Heard(id, addr) }

// Knows says that everybody is known.
func (h handler) Knows(uint64) bool { return true }

// Former says that all managers stay managers.
func (h handler) Former(rpc.Peer) bool { return false }

// NodeID is this manager's.
func (h handler) NodeID() string { return h.Self.Node }
