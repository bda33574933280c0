package node

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
)

func (n *testNode) token(role swarm.NodeRole) string {
	n.t.Helper()
	s, err := n.SwarmInspect(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	if role == swarm.NodeRoleManager {
		return s.JoinTokens.Manager
	}
	return s.JoinTokens.Worker
}

func (n *testNode) addr() string {
	n.t.Helper()
	r, err := n.current()
	if r == nil {
		n.t.Fatal("no member:", err)
	}
	return r.membership().AdvertiseAddr
}

// join makes n a worker of m's swarm.
func (n *testNode) join(m *testNode) {
	n.t.Helper()
	err := n.SwarmJoin(n.t.Context(), &swarm.JoinRequest{
		ListenAddr: freePort(n.t), RemoteAddrs: []string{m.addr()}, JoinToken: m.token(swarm.NodeRoleWorker),
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *testNode) id() string {
	n.t.Helper()
	r, err := n.current()
	if r == nil {
		n.t.Fatal("no member:", err)
	}
	return r.membership().NodeID
}

// untilNode waits until a manager sees a node so.
func (n *testNode) untilNode(id string, cond func(*api.Node) bool) time.Duration {
	n.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(n.t.Context(), 30*time.Second)
	defer cancel()
	p, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	view, w := p.store.Watch(store.KindNode)
	defer w.Close()
	for {
		node := store.Get[*api.Node](view, id)
		if cond(node) {
			return time.Since(began)
		}
		if _, err := w.Next(ctx); err != nil {
			n.t.Fatalf("never: node %s is %+v: %v", id, node, err)
		}
		view = p.store.View()
	}
}

// node is what the manager knows of a node.
func (n *testNode) node(id string) *api.Node {
	n.t.Helper()
	p, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	return store.Get[*api.Node](p.store.View(), id)
}

func is(state swarm.NodeState) func(*api.Node) bool {
	return func(n *api.Node) bool { return n != nil && n.Status.State == state }
}

func TestWorkerJoinsRunsLeaves(t *testing.T) {
	m, w := newTestNode(t, nil), newTestNode(t, nil)
	m.init()
	began := time.Now()
	w.join(m)
	t.Logf("joined and ready after %v", time.Since(began))
	m.create(spec("web", 4))
	m.until("four run", alive(4))
	if len(m.fake.Running()) != 2 || len(w.fake.Running()) != 2 {
		t.Errorf("%d run on the manager, %d on the worker", len(m.fake.Running()), len(w.fake.Running()))
	}
	i := w.info(t.Context())
	if i.LocalNodeState != swarm.LocalNodeStateActive || i.ControlAvailable || i.NodeID != w.id() || i.Error != "" ||
		!slices.Equal(i.RemoteManagers, []swarm.Peer{{NodeID: m.id(), Addr: m.addr()}}) || i.NodeAddr != "127.0.0.1" {
		t.Errorf("info = %+v", i)
	}
	if _, err := w.ServiceList(t.Context(), nil, false); !api.Is(err, api.Unavailable) || err.Error() != isWorker {
		t.Errorf("a worker's answer to a manager's call: %v", err)
	}
	if err := w.SwarmJoin(t.Context(), &swarm.JoinRequest{}); err == nil || err.Error() != inSwarm {
		t.Errorf("a second join: %v", err)
	}

	// The daemon starts again: nothing moves.
	id, dir, starts := w.id(), w.dir, w.starts.Load()
	before := m.node(id).Session
	w.end(nil)
	w.open(dir)
	if r, err := w.current(); err != nil || r.taken(t.Context()) != nil || m.node(id).Session == before {
		t.Fatal("the node did not come back:", err)
	}
	m.until("all run again", alive(4))
	if w.starts.Load() != starts || w.id() != id {
		t.Errorf("after a restart %d containers were started", w.starts.Load()-starts)
	}

	if err := w.SwarmLeave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	t.Logf("seen as down %v after it left", m.untilNode(id, is(swarm.NodeStateDown)))
	m.until("all run on the manager", func(ts []*api.Task) bool {
		n := 0
		for _, t := range ts {
			if t.NodeID == m.id() && t.Status.State == swarm.TaskStateRunning {
				n++
			}
		}
		return n == 4
	})
	if err := m.NodeRemove(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	w.join(m)
	if w.id() == id {
		t.Error("a node that joins again has its old id")
	}
}

func TestJoinRefused(t *testing.T) {
	m, w := newTestNode(t, nil), newTestNode(t, nil)
	m.init()
	good := m.token(swarm.NodeRoleWorker)
	root, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		token, remote, want string
		class               api.Class
	}{
		{good, "", "RemoteAddr is required", api.Invalid},
		{good, "host:port", "invalid remote address", api.Invalid},
		{"", m.addr(), "valid join token", api.Invalid},
		{"SWMTKN-1-x", m.addr(), "invalid join token", api.Invalid},
		{good[:len(good)-5] + "aaaaa", m.addr(), "valid join token", api.PermissionDenied},
		{ca.NewToken(root), m.addr(), "does not match fingerprint", api.Invalid},
		{good, freePort(t), "connection refused", api.Unavailable},
	} {
		r := &swarm.JoinRequest{ListenAddr: "127.0.0.1", JoinToken: c.token}
		if c.remote != "" {
			r.RemoteAddrs = []string{c.remote}
		}
		err := w.SwarmJoin(t.Context(), r)
		if !api.Is(err, c.class) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", r, err)
		}
		if state, err := w.state(); state != swarm.LocalNodeStateInactive || err != nil {
			t.Errorf("after a refusal: %s, %v", state, err)
		}
	}
	// One that does not answer is passed over.
	r := &swarm.JoinRequest{ListenAddr: freePort(t), JoinToken: good, RemoteAddrs: []string{freePort(t), m.addr()}}
	if err := w.SwarmJoin(t.Context(), r); err != nil {
		t.Error(err)
	}
}
