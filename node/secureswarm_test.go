package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/store"
)

// A rotation in a swarm of several nodes, asked for at a follower; the nodes that
// come later join by the new root's tokens.
func TestRootRotationOfManyNodes(t *testing.T) {
	nodes := managers(t, 3)
	worker := newTestNode(t, nil)
	worker.join(nodes[1])
	nodes[0].create(spec("web", 8))
	nodes[0].until("eight run", alive(8))
	before := nodes[2].untilRotated()
	for range 2 {
		err := nodes[2].updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ForceRotate++ })
		if err != nil {
			t.Fatal(err)
		}
	}
	after := nodes[2].untilRotated()
	if after.TLSInfo.TrustRoot == before.TLSInfo.TrustRoot {
		t.Fatal("the root is the old one")
	}
	for i, n := range append(nodes, worker) {
		if string(n.trusts().CertPEM()) != after.TLSInfo.TrustRoot {
			t.Errorf("node %d trusts another root", i)
		}
		n.reopen()
	}
	late := newTestNode(t, nil)
	late.join(nodes[1])
	nodes[0].untilRotated()
	nodes[0].until("eight run", alive(8))
	if starts := late.starts.Load(); starts != 0 {
		t.Errorf("%d tasks were moved", starts)
	}
}

// lockedWith waits until the node's files are encrypted with the key.
func (n *testNode) lockedWith(kek []byte) {
	n.t.Helper()
	r, err := n.current()
	if r == nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	for {
		done, changed := r.vault.is(kek)
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			n.t.Fatal("the files are not encrypted with the swarm's unlock key")
		}
	}
}

// kek is the swarm's unlock key, as bytes.
func (n *testNode) kek() []byte {
	n.t.Helper()
	p, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	for c := range store.List[*api.Cluster](p.store.View()) {
		return c.UnlockKey
	}
	n.t.Fatal("the manager knows no swarm")
	return nil
}

// The unlock key reaches all managers, old and new; workers have none.
func TestAutolockOfManyNodes(t *testing.T) {
	nodes := managers(t, 3)
	first := nodes[1].autolock(true, dockerapi.SwarmUpdateFlags{})
	late := newTestNode(t, nil)
	late.joinAsManager(nodes[0])
	nodes = append(nodes, late)
	worker := newTestNode(t, nil)
	worker.join(nodes[0])
	for i, n := range nodes {
		n.lockedWith(nodes[1].kek())
		if names := n.onDisk("BEGIN PRIVATE KEY"); len(names) > 0 {
			t.Errorf("manager %d has %q in the clear", i, names)
		}
	}
	worker.reopen()
	if state, err := worker.state(); state != swarm.LocalNodeStateActive {
		t.Errorf("a worker is %s: %v", state, err)
	}

	nodes[2].reopen()
	nodes[2].isLocked(otherKey)
	second := nodes[0].autolock(true, dockerapi.SwarmUpdateFlags{RotateManagerUnlockKey: true})
	// Its files are still as they were when it was stopped.
	if err := nodes[2].SwarmUnlock(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.lockedWith(nodes[0].kek())
	}
	late.reopen()
	late.isLocked(first)
	if err := late.SwarmUnlock(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	late.voters(4)
}

// A worker that becomes a manager locks its files; one that is a worker again
// opens them.
func TestAutolockFollowsTheRole(t *testing.T) {
	nodes := managers(t, 1)
	nodes[0].autolock(true, dockerapi.SwarmUpdateFlags{})
	n := newTestNode(t, nil)
	n.join(nodes[0])
	role := func(role swarm.NodeRole) {
		t.Helper()
		o, err := nodes[0].NodeInspect(t.Context(), n.id())
		if err != nil {
			t.Fatal(err)
		}
		o.Spec.Role = role
		if err := nodes[0].NodeUpdate(t.Context(), o.ID, o.Version.Index, &o.Spec); err != nil {
			t.Fatal(err)
		}
	}
	role(swarm.NodeRoleManager)
	nodes[0].voters(2)
	n.lockedWith(nodes[0].kek())
	if names := n.onDisk("BEGIN PRIVATE KEY"); len(names) > 0 {
		t.Errorf("a new manager has %q in the clear", names)
	}
	role(swarm.NodeRoleWorker)
	nodes[0].voters(1)
	n.lockedWith(nil)
	n.reopen()
	if state, err := n.state(); state != swarm.LocalNodeStateActive {
		t.Errorf("a worker is %s: %v", state, err)
	}
}

// A manager that goes on alone keeps its files locked.
func TestForceNewClusterUnderAutolock(t *testing.T) {
	nodes := managers(t, 2)
	key := nodes[0].autolock(true, dockerapi.SwarmUpdateFlags{})
	nodes[1].end(nil)
	force := func() error {
		_, err := nodes[0].SwarmInit(t.Context(), &swarm.InitRequest{ForceNewCluster: true, ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1"})
		return err
	}
	nodes[0].reopen()
	if err := force(); !errors.Is(err, errLocked) {
		t.Errorf("while it is locked: %v", err)
	}
	if err := nodes[0].SwarmUnlock(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := force(); err != nil {
		t.Fatal(err)
	}
	nodes[0].voters(1)
	nodes[0].reopen()
	nodes[0].isLocked(otherKey)
	if err := nodes[0].SwarmUnlock(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	nodes[0].create(spec("web", 1))
	nodes[0].until("it works", alive(1))
}

// rotate begins a rotation and waits until it has ended.
func (n *testNode) rotate() *swarm.Swarm {
	n.t.Helper()
	if err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ForceRotate++ }); err != nil {
		n.t.Fatal(err)
	}
	return n.untilRotated()
}

// A rotation does not wait for nodes that are away: certificates wait for them,
// and they are back by themselves.
func TestRotationWithoutAbsentNodes(t *testing.T) {
	nodes := managers(t, 3)
	m, away := nodes[0], nodes[2]
	hasty := func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = time.Second }
	if err := m.updateSwarm(dockerapi.SwarmUpdateFlags{}, hasty); err != nil {
		t.Fatal(err)
	}
	key := m.autolock(true, dockerapi.SwarmUpdateFlags{})
	away.lockedWith(m.kek())
	worker, gone := newTestNode(t, nil), newTestNode(t, nil)
	worker.join(m)
	gone.join(m)
	ids := []string{away.id(), worker.id()}
	lost := gone.id()
	managerDir, workerDir := away.kill(), worker.dir
	worker.end(nil)
	gone.end(nil)
	for _, id := range append(ids, lost) {
		m.untilNode(id, is(swarm.NodeStateDown))
	}
	after := m.rotate()
	for _, id := range ids {
		if n := m.node(id); n.Status.State != swarm.NodeStateDown || !n.Certificate.Waiting {
			t.Errorf("node %s: %s, %+v", id, n.Status.State, n.Certificate)
		}
	}
	away.open(managerDir)
	if err := away.SwarmUnlock(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	worker.open(workerDir)
	for _, id := range ids {
		m.untilNode(id, func(n *api.Node) bool {
			return n.Status.State == swarm.NodeStateReady && n.Description.TLSInfo.TrustRoot == after.TLSInfo.TrustRoot
		})
	}
	m.raftIs("it votes again", func(*managerPart) bool { return m.reachability(ids[0]) == "reachable" })
	away.create(spec("web", 4))
	m.until("four run", alive(4))
	for _, n := range []*testNode{away, worker} {
		if string(n.trusts().CertPEM()) != after.TLSInfo.TrustRoot {
			t.Error("a node that was away trusts another root")
		}
	}
	if names := away.onDisk("BEGIN PRIVATE KEY"); len(names) > 0 {
		t.Errorf("a manager that was away has %q in the clear", names)
	}
}

// Managers that were left behind have a quorum of the old swarm, with the old
// root; they become workers of the new one, also after several rotations.
func TestRotationWithoutThoseLeftBehind(t *testing.T) {
	nodes := managers(t, 3)
	m := nodes[0]
	gone := []string{nodes[1].id(), nodes[2].id()}
	dirs := []string{nodes[1].kill(), nodes[2].kill()}
	if _, err := m.SwarmInit(t.Context(), &swarm.InitRequest{ForceNewCluster: true, ListenAddr: m.addr(), AdvertiseAddr: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	m.voters(1)
	m.rotate()
	m.rotate()
	for i, n := range nodes[1:] {
		n.open(dirs[i])
	}
	for _, id := range gone {
		m.untilNode(id, func(n *api.Node) bool {
			return n.Status.State == swarm.NodeStateReady && n.Certificate.Role == swarm.NodeRoleWorker
		})
	}
	m.voters(1)
}

// A node that can't come back is told why, and what to do.
func TestNoWayBack(t *testing.T) {
	m, other := newTestNode(t, nil), newTestNode(t, nil)
	m.init()
	other.init()
	cur, err := other.current()
	if cur == nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r := cur.worker.recovery
	_, err = r.recover(ctx, m.addr())
	if !api.Is(err, api.PermissionDenied) || !strings.Contains(err.Error(), "rotated more than 3 times") || !strings.Contains(err.Error(), "docker node rm --force "+other.id()) {
		t.Errorf("a manager of another root: %v", err)
	}
	if taken, err := r.recover(ctx, other.addr()); taken || err != nil {
		t.Errorf("its own certificate: %v, %v", taken, err)
	}
	worker := newTestNode(t, nil)
	worker.join(m)
	left, err := worker.current()
	if left == nil {
		t.Fatal(err)
	}
	id := worker.id()
	worker.end(nil)
	if err := m.NodeRemove(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	if _, err = left.worker.recovery.recover(ctx, m.addr()); !api.Is(err, api.NotFound) || !strings.Contains(err.Error(), "swarm leave --force") {
		t.Errorf("removed: %v", err)
	}
}
