package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// Limits of a connection to another manager.
const (
	maxQueued     = 4096     // messages that wait to be sent to one
	maxEarly      = 64       // messages that wait for the connection to be made
	maxQueuedSize = 64 << 20 // bytes of them
	frameSize     = 1 << 20  // bytes of messages that go in one frame
	chunkSize     = 256 << 10
	maxOffer      = 256 << 10 // bytes of an entry that goes with raft's messages
	maxHints      = 64
	pingEvery     = 500 * time.Millisecond
	// silence is how long a manager that owes a receipt counts as reachable.
	silence     = 3 * time.Second
	openTimeout = 2 * time.Second
	// suspectAfter is how long a broken connection may take to come back before
	// the other manager's process counts as dead.
	suspectAfter = 150 * time.Millisecond
)

// MeshConfig is what a Mesh needs. The functions must be there, and are called
// from goroutines of the mesh, which they may hold up.
type MeshConfig struct {
	Credentials *Credentials
	// ID is this manager's raft id, Addr where others reach it (host:port).
	ID   uint64
	Addr string
	// Unreachable is told that messages to a manager were dropped.
	Unreachable func(ctx context.Context, id uint64)
	// Suspect is told that a manager that was connected has very likely died.
	Suspect func(ctx context.Context, id uint64)
	// Stranger is told that another manager does not know this one as a member.
	Stranger func(ctx context.Context, conn *grpc.ClientConn)
	// Log is required.
	Log *slog.Logger
}

// Mesh connects a manager to all others: one connection each, with a stream of
// raft messages that shows who can be reached. Safe for concurrent use; messages
// are sent while Run runs.
type Mesh struct {
	cfg MeshConfig

	mu      sync.Mutex
	ctx     context.Context //nolint:containedctx // Run's; nil when it is not running
	wanted  map[uint64]string
	hints   map[uint64]string // what managers that are not in wanted say of themselves
	peers   map[uint64]*peerLink
	work    sync.WaitGroup
	changed chan struct{} // closed and replaced when somebody's reachability has changed
}

// NewMesh returns a mesh. It has no effects until Run.
func NewMesh(cfg MeshConfig) *Mesh {
	return &Mesh{cfg: cfg, wanted: map[uint64]string{}, hints: map[uint64]string{}, peers: map[uint64]*peerLink{}, changed: make(chan struct{})}
}

// Run keeps the connections until ctx ends.
func (m *Mesh) Run(ctx context.Context) error {
	m.mu.Lock()
	m.ctx = ctx
	for id, addr := range m.wanted {
		m.connect(id, addr)
	}
	m.mu.Unlock()
	<-ctx.Done()
	m.mu.Lock()
	m.ctx = nil
	for id := range m.peers {
		m.disconnect(id)
	}
	m.mu.Unlock()
	m.work.Wait()
	return nil
}

// SetPeers says which other managers there are: raft id to address.
func (m *Mesh) SetPeers(peers map[uint64]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = peers
	if m.ctx == nil {
		return
	}
	for id, p := range m.peers {
		if peers[id] != p.addr {
			m.disconnect(id)
		}
	}
	for id, addr := range peers {
		m.connect(id, addr)
	}
}

// connect begins a link if there is none. Callers hold mu.
func (m *Mesh) connect(id uint64, addr string) {
	if id == m.cfg.ID || addr == "" || m.ctx == nil || m.peers[id] != nil {
		return
	}
	conn, err := DialManager(addr, m.cfg.Credentials)
	if err != nil {
		m.cfg.Log.Error("another manager's address is no good", "raft", id, "address", addr, "err", err)
		return
	}
	ctx, stop := context.WithCancel(m.ctx)
	p := &peerLink{mesh: m, id: id, addr: addr, conn: conn, stop: stop, wake: make(chan struct{}, 1), offers: map[uint64]chan<- error{}}
	m.peers[id] = p
	m.work.Go(func() {
		defer conn.Close() //nolint:errcheck // nothing to do about it
		p.run(ctx)
	})
}

// disconnect ends a link. Callers hold mu.
func (m *Mesh) disconnect(id uint64) {
	m.peers[id].stop()
	delete(m.peers, id)
}

// link returns that to a manager, which is made if there is none: a member may
// send before SetPeers has told of the other one.
func (m *Mesh) link(id uint64, addr string) (*peerLink, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if addr == "" {
		addr = m.hints[id]
	}
	m.connect(id, addr)
	if p := m.peers[id]; p != nil {
		return p, nil
	}
	return nil, api.Errorf(api.Unavailable, "there is no connection to manager %x at %q", id, addr)
}

// Heard tells that a manager says that it can be reached at addr. It counts until
// SetPeers knows better.
func (m *Mesh) Heard(id uint64, addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wanted[id] != "" || addr == "" {
		return
	}
	if len(m.hints) >= maxHints {
		clear(m.hints)
	}
	m.hints[id] = addr
}

// Send queues a message. It never blocks: what is too much is dropped.
func (m *Mesh) Send(id uint64, addr string, message []byte) {
	if p, err := m.link(id, addr); err == nil {
		p.push(parcel{message: message})
	}
}

// Propose has the manager put an entry in the log, as raftnode.Transport has it; but
// it may return only when ctx ends, also if the entry was taken.
func (m *Mesh) Propose(ctx context.Context, id uint64, addr string, term uint64, entry []byte) error {
	p, err := m.link(id, addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if len(entry) <= maxOffer {
		if sent, err := p.offer(ctx, term, entry); sent {
			return err
		}
	}
	s, err := swarmpb.NewRaftClient(p.conn).Propose(ctx)
	if err != nil {
		return err
	}
	for first := true; first || len(entry) > 0; first = false {
		part := entry[:min(len(entry), frameSize)]
		entry = entry[len(part):]
		if err := s.Send(&swarmpb.RaftProposal{Term: term, Part: part}); err != nil {
			break // the reason comes with the answer
		}
	}
	_, err = s.CloseAndRecv()
	return Error(err)
}

// SendSnapshot carries a snapshot, as raftnode.Transport has it.
func (m *Mesh) SendSnapshot(ctx context.Context, id uint64, addr string, message []byte, data io.Reader) error {
	p, err := m.link(id, addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := swarmpb.NewRaftClient(p.conn).Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&swarmpb.RaftSnapshot{Message: message}); err == nil {
		buf := make([]byte, chunkSize)
		for {
			n, err := io.ReadFull(data, buf)
			if n > 0 && s.Send(&swarmpb.RaftSnapshot{Data: buf[:n]}) != nil {
				break
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			if err != nil {
				return err // the receiver sees the stream break
			}
		}
	}
	_, err = s.CloseAndRecv()
	return Error(err)
}

// Reachable reports whether a manager answers.
func (m *Mesh) Reachable(id uint64) bool {
	if id == m.cfg.ID {
		return true
	}
	m.mu.Lock()
	p := m.peers[id]
	m.mu.Unlock()
	return p != nil && p.reachable()
}

// Conn returns the connection to a manager; nil when there is none. It is the
// mesh's: callers don't close it.
func (m *Mesh) Conn(id uint64) *grpc.ClientConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[id]; p != nil {
		return p.conn
	}
	return nil
}

// Changed returns a channel that is closed when a connection came or went.
func (m *Mesh) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *Mesh) tell() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}
