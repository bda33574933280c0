package node

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/engine"
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
	if err := w.SwarmUnlock(t.Context(), "SWMKEY-1-x"); !api.Is(err, api.Unavailable) || err.Error() != isWorker {
		t.Errorf("a worker is unlocked: %v", err)
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
	if err := w.SwarmJoin(t.Context(), &swarm.JoinRequest{RemoteAddrs: []string{m.addr()}, JoinToken: good}); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), `invalid ListenAddr ""`) {
		t.Errorf("without an address to listen at: %v", err)
	}
	if _, err := w.SwarmInit(t.Context(), &swarm.InitRequest{AdvertiseAddr: "127.0.0.1"}); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), `invalid ListenAddr ""`) {
		t.Errorf("a swarm without an address to listen at: %v", err)
	}
	if err := w.SwarmUnlock(t.Context(), ""); !api.Is(err, api.Unavailable) || err.Error() != notManager {
		t.Errorf("unlocked in no swarm: %v", err)
	}
	for _, c := range []struct {
		token, remote, want string
		class               api.Class
	}{
		{good, "", "RemoteAddr is required", api.Invalid},
		{good, "host:port", "invalid remote address", api.Invalid},
		{"", m.addr(), "valid join token", api.Invalid},
		{"SWMTKN-1-x", m.addr(), "invalid join token", api.Invalid},
		{good[:len(good)-5] + "aaaaa", m.addr(), "A valid join token is necessary to join this cluster", api.Invalid},
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

// A worker whose manager dies moves over and keeps its tasks; its logs are had
// through any manager.
// A manager that the leader does not find where it says is told, and is no member.
func TestManagerAtAnotherAddress(t *testing.T) {
	m, n := newTestNode(t, nil), newTestNode(t, nil)
	m.init()
	for advertise, want := range map[string]string{
		freePort(t): "could not connect to prospective new cluster member using its advertised address",
		m.addr():    "no manager of the swarm is known to this node at another address than its own, " + m.addr(),
	} {
		r := &swarm.JoinRequest{ListenAddr: freePort(t), AdvertiseAddr: advertise, JoinToken: m.token(swarm.NodeRoleManager), RemoteAddrs: []string{m.addr()}}
		if err := n.SwarmJoin(t.Context(), r); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--advertise-addr") {
			t.Errorf("at %s: %v", advertise, err)
		}
		if state, err := n.state(); state != swarm.LocalNodeStateInactive || err != nil {
			t.Errorf("after a refusal: %s, %v", state, err)
		}
	}
	nodes, err := m.NodeList(t.Context(), nil)
	if err != nil || len(nodes) != 3 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	for _, o := range nodes {
		if (o.ManagerStatus != nil) != (o.ID == m.id()) {
			t.Errorf("node %s has manager status %+v", o.ID, o.ManagerStatus)
		}
	}
	n.joinAsManager(m)
	m.voters(2)
	if i := m.info(t.Context()); i.Nodes != 4 || i.Managers != 2 || len(i.Warnings) != 1 || !strings.HasPrefix(i.Warnings[0], "WARNING: Running Swarm in a two-manager configuration.") {
		t.Errorf("info: %+v", i)
	}
}

// While a node waits for a manager that says nothing, it is neither in a swarm nor in
// none.
func TestJoinPending(t *testing.T) {
	m, n := newTestNode(t, nil), newTestNode(t, nil)
	m.init()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	joined := make(chan error, 1)
	r := &swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{silent.Addr().String()}, JoinToken: m.token(swarm.NodeRoleWorker)}
	go func() { joined <- n.SwarmJoin(ctx, r) }()
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if i := n.info(t.Context()); i.LocalNodeState != swarm.LocalNodeStatePending || i.Error != "" {
		t.Errorf("meanwhile: %s %s", i.LocalNodeState, i.Error)
	}
	cancel()
	if err := <-joined; err == nil {
		t.Error("it has joined nobody")
	}
	if state, err := n.state(); state != swarm.LocalNodeStateInactive || err != nil {
		t.Errorf("after it: %s, %v", state, err)
	}
}

func TestWorkerMovesOver(t *testing.T) {
	all := managers(t, 3)
	w := newTestNode(t, func(*api.Task) exectest.Script { return exectest.Script{Lines: []string{"one\n"}} })
	w.join(all[0])
	s := spec("web", 3)
	s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==worker"}}
	all[1].create(s)
	all[1].until("three run", alive(3))
	for i, m := range all {
		if n := m.logLines("web"); n != 3 {
			t.Errorf("%d lines through manager %d", n, i)
		}
	}
	served := all[0].node(w.id()).Session
	var rest []*testNode
	for _, m := range all {
		if m.id() != served.Manager {
			rest = append(rest, m)
		}
	}
	for _, m := range all {
		if m.id() == served.Manager {
			m.kill()
		}
	}
	took := rest[0].untilNode(w.id(), func(n *api.Node) bool { return n.Session.Manager != served.Manager })
	t.Logf("the worker moved over after %v", took)
	starts := w.starts.Load()
	rest[0].change("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(5))} })
	rest[1].until("five run", alive(5))
	if got := w.starts.Load() - starts; got != 2 {
		t.Errorf("%d containers were started; want the two new ones", got)
	}
	if n := rest[1].logLines("web"); n != 5 {
		t.Errorf("%d lines after the worker moved over", n)
	}
	if i := w.info(t.Context()); len(i.RemoteManagers) != 3 {
		t.Errorf("the worker knows %v", i.RemoteManagers)
	}
}

func (n *testNode) logLines(service string) int {
	n.t.Helper()
	lines := 0
	_, err := n.ServiceLogs(n.t.Context(), service, engine.LogsOptions{Stdout: true, Stderr: true, Tail: -1}, func(dockerapi.TaskLog) error {
		lines++
		return nil
	})
	if err != nil {
		n.t.Error(err)
	}
	return lines
}

// A worker that is drained, paused or has other labels; and one that dies.
func TestWorkersFate(t *testing.T) {
	m, a, b := newTestNode(t, nil), newTestNode(t, nil), newTestNode(t, nil)
	m.init()
	a.join(m)
	b.join(m)
	s := spec("web", 4)
	s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==worker"}}
	m.create(s)
	m.until("four run", alive(4))
	on := func(n *testNode) int { return len(n.fake.Running()) }
	if on(a) != 2 || on(b) != 2 {
		t.Fatalf("%d and %d run", on(a), on(b))
	}
	m.availability(a.id(), swarm.NodeAvailabilityPause)
	m.change("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(6))} })
	m.until("six run", alive(6))
	if on(a) != 2 || on(b) != 4 {
		t.Errorf("a paused: %d and %d run", on(a), on(b))
	}
	m.availability(a.id(), swarm.NodeAvailabilityDrain)
	m.until("six run elsewhere", func(ts []*api.Task) bool { return alive(6)(ts) && on(a) == 0 })
	if on(b) != 6 {
		t.Errorf("a drained: %d and %d run", on(a), on(b))
	}
	m.availability(a.id(), swarm.NodeAvailabilityActive)

	// b leaves without a word: what ran there runs on a.
	id := b.id()
	b.end(agent.ErrLeaving)
	m.untilNode(id, is(swarm.NodeStateDown))
	m.until("six run on a", func(ts []*api.Task) bool { return on(a) == 6 })
	for _, task := range m.tasksOn(id) {
		if task.DesiredState == swarm.TaskStateRunning {
			t.Errorf("%s is still wanted on a node that is down", task.ID)
		}
	}
	// It comes back, and ends what is not wanted any more.
	b.open(b.dir)
	m.untilNode(id, is(swarm.NodeStateReady))
	m.until("none is left on b", func([]*api.Task) bool { return on(b) == 0 })
	if err := m.NodeRemove(t.Context(), id, false); err == nil || !strings.Contains(err.Error(), "is not down and can't be removed") {
		t.Errorf("removal of a node that is ready: %v", err)
	}
	if err := m.NodeRemove(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	b.findsItselfRemoved()
	if err := b.SwarmLeave(t.Context(), false); err != nil {
		t.Errorf("a removed worker leaves: %v", err)
	}
	b.join(m)
}

// findsItselfRemoved waits until the node's part in the swarm has ended, and says so.
func (n *testNode) findsItselfRemoved() {
	n.t.Helper()
	for {
		state, changed := n.swarmNode.state, n.changes()
		if s, err := state(); s == swarm.LocalNodeStateError {
			if text := err.Error(); !strings.Contains(text, "it was removed") || !strings.Contains(text, "docker swarm leave --force") {
				n.t.Errorf("the removed node says %v", err)
			}
			return
		}
		select {
		case <-changed:
		case <-n.t.Context().Done():
			n.t.Fatal("never: it finds itself removed")
		}
	}
}

func (n *testNode) changes() <-chan struct{} {
	_, changed := n.watch()
	return changed
}

func (n *testNode) availability(id string, a swarm.NodeAvailability) {
	n.t.Helper()
	node, err := n.NodeInspect(n.t.Context(), id)
	if err != nil {
		n.t.Fatal(err)
	}
	node.Spec.Availability = a
	if err := n.NodeUpdate(n.t.Context(), id, node.Version.Index, &node.Spec); err != nil {
		n.t.Fatal(err)
	}
}

func (n *testNode) tasksOn(id string) []*api.Task {
	n.t.Helper()
	p, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	return slices.Collect(store.List[*api.Task](p.store.View(), store.ByNode(id)))
}
