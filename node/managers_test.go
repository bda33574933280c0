package node

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// joinAsManager makes n a manager of m's swarm.
func (n *testNode) joinAsManager(m *testNode) {
	n.t.Helper()
	err := n.SwarmJoin(n.t.Context(), &swarm.JoinRequest{
		ListenAddr: freePort(n.t), AdvertiseAddr: "127.0.0.1", JoinToken: m.token(swarm.NodeRoleManager), RemoteAddrs: []string{m.addr()},
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// managers makes a swarm of so many managers, all with a vote.
func managers(t testing.TB, count int) []*testNode {
	t.Helper()
	nodes := []*testNode{newTestNode(t, nil)}
	nodes[0].init()
	for len(nodes) < count {
		n := newTestNode(t, nil)
		n.joinAsManager(nodes[0])
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.voters(count)
	}
	return nodes
}

// voters waits until the manager sees so many.
func (n *testNode) voters(count int) {
	n.t.Helper()
	n.raftIs(fmt.Sprintf("%d managers with a vote, and a leader", count), func(p *managerPart) bool {
		if p == nil {
			return false
		}
		st := p.raft.Status()
		return len(st.Voters) == count && len(st.Learners) == 0 && st.Leader != 0
	})
}

// raftIs waits for something that changes with raft's members or leader.
func (n *testNode) raftIs(what string, cond func(*managerPart) bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	for {
		p, partChanged := n.watch()
		var raftChanged, meshChanged <-chan struct{}
		if p != nil {
			raftChanged, meshChanged = p.raft.Changed(), p.mesh.Changed()
		}
		if cond(p) {
			return
		}
		select {
		case <-partChanged:
		case <-raftChanged:
		case <-meshChanged:
		case <-ctx.Done():
			if p == nil {
				n.t.Fatalf("never: %s: no manager part", what)
			}
			n.t.Fatalf("never: %s: %+v", what, p.raft.Status())
		}
	}
}

func leader(t testing.TB, nodes []*testNode) *testNode {
	t.Helper()
	for range 200 {
		for _, n := range nodes {
			if p, err := n.leading(); err == nil && p.raft.Status().IsLeader {
				return n
			}
		}
		nodes[0].raftIs("somebody leads", func(p *managerPart) bool { return p.raft.Status().Leader != 0 })
	}
	t.Fatal("nobody leads")
	return nil
}

func TestThreeManagersAgree(t *testing.T) {
	nodes := managers(t, 3)
	for i, n := range nodes {
		n.create(spec(fmt.Sprintf("web%d", i), 2))
	}
	for _, n := range nodes {
		list, err := n.ServiceList(t.Context(), nil, false)
		if err != nil || len(list) != 3 {
			t.Fatalf("%d services, %v", len(list), err)
		}
		n.until("six run", alive(6))
	}
}

// cut ends what the others see of the node, as its kernel does when it dies.
func (n *testNode) cut() {
	n.t.Helper()
	p, err := n.leading()
	if err != nil {
		return
	}
	// With another swarm's certificate nobody talks to it any more.
	g, err := newSwarm(n.t.Context(), &swarm.InitRequest{}, &membership{RaftID: 1, AdvertiseAddr: "127.0.0.1:1"}, nil, nil, time.Now())
	if err != nil {
		n.t.Fatal(err)
	}
	if err := p.creds.Set(g.keys); err != nil {
		n.t.Fatal(err)
	}
	p.mesh.SetPeers(nil)
	p.server.Stop()
}

// kill ends the node without a word to the others, as a crash does; its folder is
// returned.
func (n *testNode) kill() string {
	n.t.Helper()
	n.cut()
	n.end(nil)
	return n.dir
}

// eventually tries a change until it succeeds.
func (n *testNode) eventually(what string, change func() error) time.Duration {
	n.t.Helper()
	began := time.Now()
	for {
		err := change()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > 20*time.Second {
			n.t.Fatalf("never: %s: %v", what, err)
		}
	}
}

// setRole promotes or demotes a node.
func (n *testNode) setRole(id string, role swarm.NodeRole) error {
	node, err := n.NodeInspect(n.t.Context(), id)
	if err != nil {
		return err
	}
	node.Spec.Role = role
	return n.NodeUpdate(n.t.Context(), node.ID, node.Version.Index, &node.Spec)
}

// reachability is how the manager sees another one: leader, reachable,
// unreachable, or nothing for workers.
func (n *testNode) reachability(id string) string {
	node, err := n.NodeInspect(n.t.Context(), id)
	switch {
	case err != nil:
		return err.Error()
	case node.ManagerStatus == nil:
		return ""
	case node.ManagerStatus.Leader:
		return "leader"
	}
	return string(node.ManagerStatus.Reachability)
}

func without(nodes []*testNode, n *testNode) []*testNode {
	return slices.DeleteFunc(slices.Clone(nodes), func(o *testNode) bool { return o == n })
}
