package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/swarmpb"
)

// manager is one that only notes what others send.
type manager struct {
	t      *testing.T
	id     uint64
	creds  *Credentials
	listen net.Listener
	server *Server
	mesh   *Mesh
	got    chan []byte

	mu        sync.Mutex
	snapshot  []byte
	proposed  []byte
	known     map[uint64]bool
	heard     map[uint64]string
	suspected chan uint64
	strangers chan struct{}
}

func newManager(t *testing.T, root *ca.Root, id uint64, name string) *manager {
	t.Helper()
	key, csr, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := root.Issue(csr, ca.Identity{NodeID: name, Role: swarm.NodeRoleManager, Cluster: "c"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ca.NewKeys(root, cert, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{
		t: t, id: id, creds: &Credentials{}, got: make(chan []byte, 1000), known: map[uint64]bool{1: true, 2: true},
		heard: map[uint64]string{}, suspected: make(chan uint64, 10), strangers: make(chan struct{}, 100),
	}
	if err := m.creds.Set(keys); err != nil {
		t.Fatal(err)
	}
	m.serve("127.0.0.1:0")
	m.mesh = NewMesh(MeshConfig{
		Credentials: m.creds, ID: id, Addr: m.addr(), Log: slog.New(slog.DiscardHandler),
		Unreachable: func(context.Context, uint64) {},
		Suspect:     func(_ context.Context, id uint64) { m.suspected <- id },
		Stranger: func(context.Context, *grpc.ClientConn) {
			select {
			case m.strangers <- struct{}{}:
			default:
			}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.mesh.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		m.server.Stop()
	})
	return m
}

func (m *manager) serve(addr string) {
	var err error
	if m.listen, err = net.Listen("tcp", addr); err != nil {
		m.t.Fatal(err)
	}
	m.server = NewServer(ServerConfig{Credentials: m.creds, Log: slog.New(slog.DiscardHandler)})
	RegisterRaft(m.server, m)
	go func(s *Server, l net.Listener) { _ = s.Serve(l) }(m.server, m.listen) // ends with Stop
}

func (m *manager) addr() string { return m.listen.Addr().String() }

func (m *manager) Step(message []byte) error {
	if string(message) == "garbage" {
		return api.Errorf(api.Invalid, "garbage")
	}
	m.got <- message
	return nil
}

func (m *manager) Former(from Peer) bool { return from.NodeID == "former" }

func (m *manager) StepSnapshot(_ context.Context, message []byte, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshot = append(message, b...)
	return nil
}

func (m *manager) Accept(_ context.Context, from Peer, term uint64, entry []byte) error {
	if term != 3 || !from.Manager() {
		return api.Errorf(api.NotLeader, "term %d", term)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proposed = entry
	return nil
}

func (m *manager) Offer(from Peer, term uint64, entry []byte, told func(error)) {
	err := m.Accept(context.Background(), from, term, entry)
	if err == nil {
		m.got <- entry
	}
	told(err)
}

func (m *manager) Join(context.Context, Peer, Member) ([]Member, error) { return nil, nil }

func (m *manager) RefuseEngine(_ context.Context, from Peer) error {
	return api.Errorf(api.Invalid, "%s is a Docker Engine", from.NodeID)
}

func (m *manager) Members(context.Context) ([]Member, error) { return nil, nil }

func (m *manager) Heard(id uint64, addr string) {
	m.mu.Lock()
	m.heard[id] = addr
	m.mu.Unlock()
	m.mesh.Heard(id, addr)
}

func (m *manager) Knows(id uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known[id]
}

func (m *manager) NodeID() string { return "" }

func (m *manager) reaches(id uint64, want bool) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
	defer cancel()
	for {
		changed := m.mesh.Changed()
		if m.mesh.Reachable(id) == want {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			m.t.Fatalf("reachability of %d is never %v", id, want)
		}
	}
}

func two(t *testing.T) (a, b *manager) {
	t.Helper()
	root, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, b = newManager(t, root, 1, "a"), newManager(t, root, 2, "b")
	a.mesh.SetPeers(map[uint64]string{1: a.addr(), 2: b.addr()})
	a.reaches(2, true)
	return a, b
}

func TestMeshCarries(t *testing.T) {
	a, b := two(t)
	large := bytes.Repeat([]byte("0123456789"), 500_000)
	for _, m := range [][]byte{[]byte("one"), large, []byte("two")} {
		a.mesh.Send(2, b.addr(), m)
		if got := <-b.got; !bytes.Equal(got, m) {
			t.Errorf("%d bytes arrived of %d", len(got), len(m))
		}
	}
	// b knows a from what a said only.
	b.mesh.Send(1, "", []byte("answer"))
	if got := <-a.got; string(got) != "answer" {
		t.Errorf("got %q", got)
	}
	if err := a.mesh.SendSnapshot(t.Context(), 2, b.addr(), []byte("m"), bytes.NewReader(large)); err != nil || len(b.snapshot) != len(large)+1 {
		t.Errorf("snapshot: %d bytes, %v", len(b.snapshot), err)
	}
	broken := errors.New("broken")
	if err := a.mesh.SendSnapshot(t.Context(), 2, b.addr(), nil, io.MultiReader(bytes.NewReader(large), &failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a snapshot that can't be read: %v", err)
	}
	if err := a.mesh.Propose(t.Context(), 2, b.addr(), 3, large); err != nil || !bytes.Equal(b.proposed, large) {
		t.Errorf("proposal: %d bytes, %v", len(b.proposed), err)
	}
	if err := a.mesh.Propose(t.Context(), 2, b.addr(), 4, nil); !api.Is(err, api.NotLeader) {
		t.Errorf("a refused proposal: %v", err)
	}
	if err := a.mesh.Propose(t.Context(), 9, "", 4, nil); !api.Is(err, api.Unavailable) {
		t.Errorf("a proposal to nobody: %v", err)
	}
}

// TestMeshOffers: a small proposal goes with raft's messages. It is answered when it is
// refused, or the connection breaks.
func TestMeshOffers(t *testing.T) {
	a, b := two(t)
	ctx, cancel := context.WithCancel(t.Context())
	taken := make(chan error, 1)
	go func() { taken <- a.mesh.Propose(ctx, 2, b.addr(), 3, []byte("entry")) }()
	if got := <-b.got; string(got) != "entry" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-taken; !api.Is(err, api.DeadlineExceeded) {
		t.Errorf("one that was taken: %v", err)
	}
	err := a.mesh.Propose(t.Context(), 2, b.addr(), 4, []byte("entry"))
	if !api.Is(err, api.NotLeader) || err.Error() != "term 4" || !Answered(err) {
		t.Errorf("one that was refused: %v", err)
	}
	go func() { taken <- a.mesh.Propose(t.Context(), 2, b.addr(), 3, []byte("entry")) }()
	<-b.got
	b.server.Stop()
	if err := <-taken; !api.Is(err, api.Unavailable) {
		t.Errorf("one whose connection broke: %v", err)
	}
	a.mesh.mu.Lock()
	p := a.mesh.peers[2]
	a.mesh.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.offers) > 0 {
		t.Errorf("%d offers are not forgotten", len(p.offers))
	}
}

// A Docker Engine that wants to be a manager is told why not, whatever it sends.
func TestEngineJoin(t *testing.T) {
	root, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, b := newManager(t, root, 1, "a"), newManager(t, root, 2, "b")
	conn, err := DialManager(b.addr(), a.creds)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test ends
	err = Error(conn.Invoke(t.Context(), "/docker.swarmkit.v1.RaftMembership/Join", &swarmpb.RaftFrame{Part: []byte("anything")}, &swarmpb.RaftFrame{}))
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "a is a Docker Engine") {
		t.Error(err)
	}
	err = Error(conn.Invoke(t.Context(), "/docker.swarmkit.v1.RaftMembership/Leave", &swarmpb.RaftFrame{}, &swarmpb.RaftFrame{}))
	if !api.Is(err, api.Unimplemented) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestMeshNoticesDeath(t *testing.T) {
	a, b := two(t)
	addr := b.addr()
	began := time.Now()
	b.server.Stop()
	if id := <-a.suspected; id != 2 {
		t.Errorf("%d is suspected", id)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("death was noticed after %v", d)
	}
	a.reaches(2, false)
	b.serve(addr)
	a.reaches(2, true)
	a.mesh.SetPeers(map[uint64]string{1: a.addr()})
	if a.mesh.Reachable(2) || a.mesh.Conn(2) != nil {
		t.Error("one that is no peer any more is still connected")
	}
}

// TestMeshGarbage: what the other one refuses ends the stream, not the mesh.
func TestMeshGarbage(t *testing.T) {
	a, b := two(t)
	a.mesh.Send(2, b.addr(), []byte("garbage"))
	for { // what was queued behind the garbage is lost
		a.mesh.Send(2, b.addr(), []byte("good"))
		select {
		case got := <-b.got:
			if string(got) != "good" {
				t.Errorf("got %q", got)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestMeshStranger(t *testing.T) {
	a, b := two(t)
	b.mu.Lock()
	b.known = nil
	b.mu.Unlock()
	<-a.strangers
}

// TestMeshDrops: a manager that does not answer makes nothing grow.
func TestMeshDrops(t *testing.T) {
	a, _ := two(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test ends
	for range 3 * maxQueued {
		a.mesh.Send(3, l.Addr().String(), make([]byte, 100))
	}
	a.mesh.mu.Lock()
	p := a.mesh.peers[3]
	a.mesh.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > maxQueued || p.size > maxQueuedSize {
		t.Errorf("%d messages wait", len(p.queue))
	}
}

// TestMeshDropsOffers: a proposal that there is no room for is told so, for nothing sends
// it again by itself.
func TestMeshDropsOffers(t *testing.T) {
	refused := make(chan error, 1)
	p := &peerLink{up: true, size: maxQueuedSize, offers: map[uint64]chan<- error{7: refused}}
	p.queueUp(parcel{offer: &swarmpb.RaftOffer{Number: 7, Entry: []byte("entry")}})
	select {
	case err := <-refused:
		if !api.Is(err, api.Unavailable) {
			t.Error(err)
		}
	default:
		t.Error("it waits for ever")
	}
	if len(p.queue) > 0 || len(p.offers) > 0 || !p.full {
		t.Errorf("%d wait to be sent, %d to be answered", len(p.queue), len(p.offers))
	}
}

// TestMeshFormer: what a manager that was demoted sends does not arrive, and it
// is told.
func TestMeshFormer(t *testing.T) {
	root, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, b := newManager(t, root, 1, "former"), newManager(t, root, 2, "b")
	a.mesh.SetPeers(map[uint64]string{2: b.addr()})
	a.mesh.Send(2, b.addr(), []byte("vote for me"))
	<-a.strangers
	if err := a.mesh.SendSnapshot(t.Context(), 2, b.addr(), []byte("m"), bytes.NewReader(nil)); !api.Is(err, api.PermissionDenied) {
		t.Errorf("its snapshot: %v", err)
	}
	if len(b.got) > 0 {
		t.Error("its message arrived")
	}
}

// TestMeshManySenders: what several goroutines send at the same time arrives whole,
// that of each in its order, whoever has written it.
func TestMeshManySenders(t *testing.T) {
	a, b := two(t)
	const senders, each = 8, 100
	var all sync.WaitGroup
	for s := range senders {
		all.Go(func() {
			for i := range each {
				message := make([]byte, 2+(s*each+i)*50)
				message[0], message[1] = byte(s), byte(i)
				a.mesh.Send(2, b.addr(), message)
			}
		})
	}
	next := map[byte]int{}
	for range senders * each {
		m := <-b.got
		s, i := m[0], int(m[1])
		if want := 2 + (int(s)*each+i)*50; i != next[s] || len(m) != want {
			t.Fatalf("message %d of sender %d has %d bytes; it is %d's turn", i, s, len(m), next[s])
		}
		next[s]++
	}
	all.Wait()
}
