package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// maxRaftMessage bounds one message of raft and one entry, put together.
	maxRaftMessage = 64 << 20
	// maxSnapshots bounds the snapshots that are received at once.
	maxSnapshots = 4
	// receiptGap is how long frames may wait for a receipt.
	receiptGap = 500 * time.Millisecond
	maxAddr    = 300
	// maxRefusals bounds the offers whose refusals wait to be sent.
	maxRefusals = 256
)

// Member is a manager as others know it.
type Member struct {
	RaftID uint64
	NodeID string
	Addr   string // host:port
}

// RaftHandler is what a manager does for others. The calls come from holders of a
// manager's certificate; what they send is not checked otherwise.
type RaftHandler interface {
	// Step takes a raft message; it returns at once.
	Step(message []byte) error
	// StepSnapshot takes a snapshot.
	StepSnapshot(ctx context.Context, message []byte, data io.Reader) error
	// Accept takes another manager's proposal.
	Accept(ctx context.Context, from Peer, term uint64, entry []byte) error
	// Offer is Accept for who can't wait: told gets the result once, at any time, or
	// never. It does not block, and neither must told.
	Offer(from Peer, term uint64, entry []byte, told func(error))
	// Join makes a manager a member, and returns all of them.
	Join(ctx context.Context, from Peer, m Member) ([]Member, error)
	// RefuseEngine returns why a Docker Engine can't be a manager.
	RefuseEngine(ctx context.Context, from Peer) error
	// Members returns the members as a quorum knows them.
	Members(ctx context.Context) ([]Member, error)
	// Heard tells that a manager says that it can be reached at addr.
	Heard(id uint64, addr string)
	// Knows reports whether the raft id is a member's, as far as is known here.
	Knows(id uint64) bool
	// Former reports whether the caller is known to be a manager no more, although
	// its certificate still says so: nothing that it sends reaches raft.
	Former(from Peer) bool
	// NodeID is this node's.
	NodeID() string
}

// RegisterRaft registers the service Raft, and serves raft's connections. Before
// the server serves only.
func RegisterRaft(s *Server, h RaftHandler) {
	r := &raftServer{h: h, snapshots: make(chan struct{}, maxSnapshots)}
	swarmpb.RegisterRaftServer(s, r)
	registerEngine(s, h)
	s.raft.mu.Lock()
	defer s.raft.mu.Unlock()
	s.raft.handle = r.messages
}

type raftServer struct {
	swarmpb.UnimplementedRaftServer

	h         RaftHandler
	snapshots chan struct{}
}

// messages takes another manager's until the connection breaks (nil), or it sends
// what it must not.
func (r *raftServer) messages(ctx context.Context, w *wire) error {
	ctx, cancel := context.WithCancel(ctx)
	from, _ := PeerFrom(ctx)
	came := make(chan uint64, 1)
	var receipts sync.WaitGroup
	refusals := make(chan *swarmpb.RaftRefusal, maxRefusals)
	receipts.Go(func() { r.receipts(ctx, w, from, came, refusals) })
	defer receipts.Wait()
	defer w.conn.Close() //nolint:errcheck // it ends the receipts, too
	defer cancel()
	var large []byte
	var f swarmpb.RaftFrame
	for {
		switch err := w.receive(&f, maxFrame); {
		case api.ClassOf(err) == api.Invalid, api.ClassOf(err) == api.ResourceExhausted:
			return err
		case err != nil:
			return nil
		}
		if addr := f.GetAddr(); addr != "" && len(addr) <= maxAddr {
			r.h.Heard(f.GetFrom(), addr)
		}
		messages := f.GetMessages()
		if part := f.GetPart(); len(part) > 0 {
			if len(large)+len(part) > maxRaftMessage {
				return api.Errorf(api.ResourceExhausted, "a raft message of more than %d bytes", maxRaftMessage)
			}
			large = append(large, part...)
			if f.GetLast() {
				messages, large = append(messages, large), nil
			}
		}
		if r.h.Former(from) { // the receipt says so, and it will ask why
			messages = nil
		}
		for _, m := range messages {
			if err := r.h.Step(m); err != nil {
				return err
			}
		}
		for _, o := range f.GetOffers() {
			number := o.GetNumber()
			r.h.Offer(from, o.GetTerm(), o.GetEntry(), func(err error) {
				if err == nil {
					return
				}
				select {
				case refusals <- refuse(number, err):
				default: // it is offered again
				}
			})
		}
		select {
		case came <- f.GetFrom():
		default:
		}
	}
}

// receipts tells that frames have come: of the first at once, then of all that
// came in a while. A receipt for each frame would double the packets of a write.
// Refusals go at once.
func (r *raftServer) receipts(ctx context.Context, w *wire, peer Peer, came <-chan uint64, refusals <-chan *swarmpb.RaftRefusal) {
	gap := time.NewTimer(0)
	defer gap.Stop()
	var next <-chan uint64 // nil: not yet
	for {
		receipt := &swarmpb.RaftReceipt{}
		select {
		case from := <-next:
			receipt.Stranger = r.h.Former(peer) || !r.h.Knows(from)
			next = nil
			gap.Reset(receiptGap)
		case <-gap.C:
			next = came
			continue
		case refusal := <-refusals:
			receipt.Refusals = []*swarmpb.RaftRefusal{refusal}
		case <-ctx.Done():
			return
		}
		if w.send(receipt) != nil {
			return // who receives sees it, too
		}
	}
}

// Snapshot implements the Raft service.
func (r *raftServer) Snapshot(s grpc.ClientStreamingServer[swarmpb.RaftSnapshot, swarmpb.RaftSnapshotTaken]) error {
	select {
	case r.snapshots <- struct{}{}:
		defer func() { <-r.snapshots }()
	default:
		return api.Errorf(api.ResourceExhausted, "this manager is receiving %d snapshots already", maxSnapshots)
	}
	if from, _ := PeerFrom(s.Context()); r.h.Former(from) {
		return api.Errorf(api.PermissionDenied, "node %s is not a manager of the swarm any more", from.NodeID)
	}
	f, err := s.Recv()
	if err != nil {
		return err
	}
	if err := r.h.StepSnapshot(s.Context(), f.GetMessage(), &chunks{recv: s, rest: f.GetData()}); err != nil {
		return err
	}
	return s.SendAndClose(&swarmpb.RaftSnapshotTaken{})
}

// chunks reads the pieces of a snapshot.
type chunks struct {
	recv grpc.ClientStreamingServer[swarmpb.RaftSnapshot, swarmpb.RaftSnapshotTaken]
	rest []byte
}

// Read implements io.Reader.
func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		f, err := c.recv.Recv()
		if err != nil {
			return 0, err
		}
		c.rest = f.GetData()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Propose implements the Raft service.
func (r *raftServer) Propose(s grpc.ClientStreamingServer[swarmpb.RaftProposal, swarmpb.RaftProposed]) error {
	var entry []byte
	var term uint64
	for {
		f, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(entry)+len(f.GetPart()) > maxRaftMessage {
			return api.Errorf(api.ResourceExhausted, "a raft entry of more than %d bytes", maxRaftMessage)
		}
		entry, term = append(entry, f.GetPart()...), f.GetTerm()
	}
	from, _ := PeerFrom(s.Context())
	if err := r.h.Accept(s.Context(), from, term, entry); err != nil {
		return err
	}
	return s.SendAndClose(&swarmpb.RaftProposed{})
}

// Join implements the Raft service.
func (r *raftServer) Join(ctx context.Context, req *swarmpb.RaftJoinRequest) (*swarmpb.RaftJoinResponse, error) {
	from, _ := PeerFrom(ctx)
	m := req.GetMember()
	members, err := r.h.Join(ctx, from, Member{RaftID: m.GetRaftId(), NodeID: m.GetNodeId(), Addr: m.GetAddr()})
	if err != nil {
		return nil, err
	}
	return &swarmpb.RaftJoinResponse{Members: onWire(members)}, nil
}

// Members implements the Raft service.
func (r *raftServer) Members(ctx context.Context, _ *swarmpb.RaftMembersRequest) (*swarmpb.RaftMembersResponse, error) {
	members, err := r.h.Members(ctx)
	if err != nil {
		return nil, err
	}
	return &swarmpb.RaftMembersResponse{Members: onWire(members)}, nil
}

// Hello implements the Raft service.
func (r *raftServer) Hello(context.Context, *swarmpb.RaftHelloRequest) (*swarmpb.RaftHelloResponse, error) {
	return &swarmpb.RaftHelloResponse{NodeId: r.h.NodeID()}, nil
}

func onWire(members []Member) []*swarmpb.RaftMember {
	var out []*swarmpb.RaftMember
	for _, m := range members {
		out = append(out, &swarmpb.RaftMember{RaftId: m.RaftID, NodeId: m.NodeID, Addr: m.Addr})
	}
	return out
}

func fromWire(members []*swarmpb.RaftMember) []Member {
	var out []Member
	for _, m := range members {
		out = append(out, Member{RaftID: m.GetRaftId(), NodeID: m.GetNodeId(), Addr: m.GetAddr()})
	}
	return out
}

// Join asks a manager to make m a member, and returns all members.
func Join(ctx context.Context, conn *grpc.ClientConn, m Member) ([]Member, error) {
	r, err := swarmpb.NewRaftClient(conn).Join(ctx, &swarmpb.RaftJoinRequest{Member: onWire([]Member{m})[0]})
	return fromWire(r.GetMembers()), err
}

// Members asks a manager for the members as a quorum knows them.
func Members(ctx context.Context, conn *grpc.ClientConn) ([]Member, error) {
	r, err := swarmpb.NewRaftClient(conn).Members(ctx, &swarmpb.RaftMembersRequest{})
	return fromWire(r.GetMembers()), err
}

// Hello asks the manager at addr who it is, over a connection of its own.
func Hello(ctx context.Context, addr string, c *Credentials) (nodeID string, err error) {
	conn, err := DialManager(addr, c)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	r, err := swarmpb.NewRaftClient(conn).Hello(ctx, &swarmpb.RaftHelloRequest{})
	return r.GetNodeId(), err
}
