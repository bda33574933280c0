package node

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// TestDemotedWhileDead has a manager that was taken out in its absence find that
// out when it comes back.
func TestDemotedWhileDead(t *testing.T) {
	nodes := managers(t, 3)
	dead := nodes[1]
	id := dead.id()
	dir := dead.kill()
	nodes[0].raftIs("it is missed", func(*managerPart) bool { return nodes[0].reachability(id) == "unreachable" })
	nodes[0].eventually("the dead manager is demoted", func() error { return nodes[0].setRole(id, swarm.NodeRoleWorker) })
	nodes[0].voters(2)
	dead.open(dir)
	dead.raftIs("its manager part ends", func(p *managerPart) bool { return p == nil })
	nodes[2].untilNode(id, func(n *api.Node) bool {
		return n.Status.State == swarm.NodeStateReady && n.Certificate.Role == swarm.NodeRoleWorker
	})
	nodes[0].voters(2)
}

// Nodes that were removed in their absence say so when they come back, whatever they
// were: they neither look as if all was well, nor ask for a new cluster to be forced.
func TestRemovedWhileDead(t *testing.T) {
	nodes := managers(t, 3)
	m, dead, worker := nodes[0], nodes[1], newTestNode(t, nil)
	worker.join(m)
	ids := []string{dead.id(), worker.id()}
	dirs := []string{dead.kill(), worker.dir}
	worker.end(nil)
	m.raftIs("it is missed", func(*managerPart) bool { return m.reachability(ids[0]) == "unreachable" })
	m.eventually("the dead manager is demoted", func() error { return m.setRole(ids[0], swarm.NodeRoleWorker) })
	m.voters(2)
	for i, n := range []*testNode{dead, worker} {
		m.eventually("it is removed", func() error { return m.NodeRemove(t.Context(), ids[i], true) })
		n.open(dirs[i])
		n.findsItselfRemoved()
		if err := n.SwarmLeave(t.Context(), true); err != nil {
			t.Error(err)
		}
	}
	worker.join(m)
}

// TestPowerLoss has all managers die and come back.
func TestPowerLoss(t *testing.T) {
	nodes := managers(t, 3)
	nodes[0].create(spec("web", 6))
	nodes[0].until("six run", alive(6))
	var dirs []string
	var starts int64
	for _, n := range nodes {
		dirs = append(dirs, n.kill())
		starts += n.starts.Load()
	}
	for i, n := range nodes {
		n.open(dirs[i])
	}
	for _, n := range nodes {
		n.voters(3)
		n.until("six run", alive(6))
		starts -= n.starts.Load()
	}
	if starts != 0 {
		t.Errorf("%d containers were started again", -starts)
	}
	nodes[2].create(spec("after", 1))
}

// intrude sends something over a connection for raft's messages, and returns when
// the manager has ended it.
func intrude(t *testing.T, addr string, creds *rpc.Credentials, b []byte) {
	t.Helper()
	config := creds.ClientConfig(ca.ManagerOU)
	config.NextProtos = []string{"legion-raft/1"}
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // it is of no use any more
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes of garbage: the connection goes on", len(b))
	}
}

// TestGarbage sends what no manager would, with a manager's certificate.
func TestGarbage(t *testing.T) {
	nodes := managers(t, 3)
	cur, _ := nodes[1].current()
	conn, err := rpc.DialManager(nodes[0].addr(), cur.creds)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test ends
	client := swarmpb.NewRaftClient(conn)
	for _, f := range []*swarmpb.RaftFrame{
		{From: 7, Messages: [][]byte{{1, 2, 3}}},
		{From: 7, Messages: [][]byte{nil}},
		{From: 7, Part: []byte("x"), Last: true},
		{From: 7, Addr: strings.Repeat("a", 1<<20), Messages: [][]byte{{0xff}}},
	} {
		b, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		intrude(t, nodes[0].addr(), cur.creds, append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	}
	for _, b := range [][]byte{{0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 2, 0xff, 0xff}, {0, 0x20, 0, 1}} {
		intrude(t, nodes[0].addr(), cur.creds, b)
	}
	snap, err := client.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := snap.Send(&swarmpb.RaftSnapshot{Message: []byte("x"), Data: []byte("y")}); err != nil {
		t.Fatal(err)
	}
	if _, err := snap.CloseAndRecv(); !api.Is(rpc.Error(err), api.Invalid) {
		t.Errorf("a snapshot of garbage: %v", err)
	}
	p, _ := nodes[0].leading()
	if _, err := rpc.Join(t.Context(), conn, rpc.Member{RaftID: p.state.RaftID, NodeID: nodes[1].id(), Addr: "127.0.0.1:1"}); !api.Is(err, api.Conflict) && !api.Is(err, api.Unavailable) {
		t.Errorf("join with another's number: %v", err)
	}
	if _, err := rpc.Join(t.Context(), conn, rpc.Member{RaftID: 5, NodeID: nodes[1].id(), Addr: nodes[2].addr()}); err == nil || !strings.Contains(err.Error(), "instead of") {
		t.Errorf("join with another's address: %v", err)
	}
	for _, n := range nodes {
		n.create(spec("by"+n.id(), 1))
		n.voters(3)
	}
}

// A Docker Engine that asks to be a manager leaves no node behind if it has just
// joined; one that was a worker before stays.
func TestDockerEngineIsNoManager(t *testing.T) {
	m := managers(t, 1)[0]
	p, _ := m.leading()
	joined := func(id string, busy bool) {
		t.Helper()
		if _, err := p.store.Update(t.Context(), func(tx *store.Tx) error {
			n := &api.Node{Role: swarm.NodeRoleManager}
			n.ID, n.Spec.Role, n.Spec.Availability, n.Status.State = id, swarm.NodeRoleManager, swarm.NodeAvailabilityPause, swarm.NodeStateReady
			if err := store.Create(tx, n); err != nil {
				return err
			}
			if !busy {
				return nil
			}
			return store.Create(tx, &api.Task{ID: "t", NodeID: id, Spec: &api.TaskSpec{}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	joined("fresh", false)
	joined("busy", true)
	for id, stays := range map[string]bool{"fresh": false, "busy": true, m.id(): true, "nobody": false} {
		err := p.RefuseEngine(t.Context(), rpc.Peer{Identity: ca.Identity{NodeID: id, Role: swarm.NodeRoleManager}})
		if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "join-token worker") {
			t.Errorf("%s: %v", id, err)
		}
		n := store.Get[*api.Node](p.store.View(), id)
		if (n != nil) != stays || n != nil && n.Spec.Role != swarm.NodeRoleManager {
			t.Errorf("%s: %+v", id, n)
		}
	}
}

func TestJustJoined(t *testing.T) {
	now := time.Now()
	for ago, want := range map[time.Duration]bool{0: true, justJoined - 1: true, justJoined: false, time.Hour: false} {
		n := &api.Node{}
		if n.CreatedAt = now.Add(-ago); hasJustJoined(n, now) != want {
			t.Errorf("%v ago: %v", ago, !want)
		}
		if n.RaftID = 1; hasJustJoined(n, now) {
			t.Errorf("%v ago: a member", ago)
		}
	}
}

// TestWorkerMayNotProposeOrJoin: the service Raft is for managers, whatever the
// certificate says.
func TestWorkerMayNotProposeOrJoin(t *testing.T) {
	nodes := managers(t, 2)
	w := newTestNode(t, nil)
	w.join(nodes[0])
	cur, _ := w.current()
	conn, err := rpc.DialManager(nodes[0].addr(), cur.creds)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test ends
	if _, err := rpc.Join(t.Context(), conn, rpc.Member{RaftID: 5, NodeID: w.id(), Addr: w.addr()}); !api.Is(err, api.PermissionDenied) {
		t.Errorf("a worker joins: %v", err)
	}
	intrude(t, nodes[0].addr(), cur.creds, []byte{0, 0, 0, 0}) // a manager's connection would go on
	if _, err := swarmpb.NewRaftClient(conn).Members(t.Context(), &swarmpb.RaftMembersRequest{}); !api.Is(err, api.PermissionDenied) {
		t.Errorf("a worker asks for the members: %v", err)
	}
	if _, err := rpc.Members(t.Context(), conn); !api.Is(err, api.PermissionDenied) {
		t.Errorf("a worker asks for the members: %v", err)
	}
	// A manager's certificate that outlived its role.
	old, _ := nodes[1].current()
	var kept rpc.Credentials
	if err := kept.Set(old.creds.Keys()); err != nil {
		t.Fatal(err)
	}
	id := nodes[1].id()
	if err := nodes[0].setRole(id, swarm.NodeRoleWorker); err != nil {
		t.Fatal(err)
	}
	nodes[0].voters(1)
	nodes[0].untilNode(id, func(n *api.Node) bool { return n.Role == swarm.NodeRoleWorker })
	conn2, err := rpc.DialManager(nodes[0].addr(), &kept)
	if err != nil {
		t.Fatal(err)
	}
	defer conn2.Close() //nolint:errcheck // the test ends
	if _, err := rpc.Join(t.Context(), conn2, rpc.Member{RaftID: 5, NodeID: id, Addr: nodes[1].addr()}); !api.Is(err, api.PermissionDenied) {
		t.Errorf("one that was a manager joins: %v", err)
	}
	s, err := swarmpb.NewRaftClient(conn2).Propose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Send(&swarmpb.RaftProposal{Term: 2, Part: make([]byte, 20)}) // the answer has the error
	if _, err := s.CloseAndRecv(); !api.Is(rpc.Error(err), api.PermissionDenied) {
		t.Errorf("one that was a manager proposes: %v", err)
	}
}
