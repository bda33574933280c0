package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/store"
)

func TestLeaderDies(t *testing.T) {
	nodes := managers(t, 3)
	nodes[0].create(spec("web", 3))
	nodes[1].until("three run", alive(3))
	old := leader(t, nodes)
	rest, id := without(nodes, old), old.id()
	began := time.Now()
	old.cut()
	rest[0].create(spec("after", 1))
	took := time.Since(began)
	t.Logf("the next write took %v", took)
	if took > 2*time.Second {
		t.Errorf("the next write took %v", took)
	}
	dir := old.kill()
	for _, n := range rest {
		if got := n.reachability(id); got != "unreachable" {
			t.Errorf("the dead leader is %q", got)
		}
	}
	old.open(dir)
	for _, n := range rest {
		n.raftIs("the old leader is back", func(*managerPart) bool { return n.reachability(id) == "reachable" })
	}
	old.raftIs("it knows what was written meanwhile", func(*managerPart) bool {
		list, err := old.ServiceList(t.Context(), nil, false)
		return err == nil && len(list) == 2
	})
	if got := old.reachability(leader(t, nodes).id()); got != "leader" {
		t.Errorf("the new leader is %q there", got)
	}
}

func TestLeaderStops(t *testing.T) {
	nodes := managers(t, 3)
	old := leader(t, nodes)
	old.end(nil)
	rest := without(nodes, old)
	began := time.Now()
	rest[0].create(spec("after", 1))
	if took := time.Since(began); took > time.Second {
		t.Errorf("the next write took %v after a leader that handed over", took)
	}
}

func TestPromoteAndDemote(t *testing.T) {
	nodes := managers(t, 3)
	w := newTestNode(t, nil)
	w.join(nodes[0])
	id := w.id()
	var before uint64
	for i := range 2 {
		if err := nodes[1].setRole(id, swarm.NodeRoleManager); err != nil {
			t.Fatal(err)
		}
		w.voters(4)
		if w.id() != id {
			t.Error("promotion gave the node another id")
		}
		w.create(spec(fmt.Sprint("by-the-new-one-", i), 1))
		p, _ := w.leading()
		if p.state.RaftID == before {
			t.Error("a raft id was used twice")
		}
		before = p.state.RaftID
		if err := nodes[2].setRole(id, swarm.NodeRoleWorker); err != nil {
			t.Fatal(err)
		}
		nodes[0].voters(3)
		w.raftIs("the manager part ends", func(p *managerPart) bool { return p == nil })
		nodes[0].untilNode(id, func(n *api.Node) bool {
			return n.Role == swarm.NodeRoleWorker && n.Certificate.Role == swarm.NodeRoleWorker && n.Status.State == swarm.NodeStateReady
		})
		if _, err := w.NodeList(t.Context(), nil); err == nil || err.Error() != isWorker {
			t.Errorf("a demoted node lists nodes: %v", err)
		}
	}
	// The leader too.
	lead := leader(t, nodes)
	rest := without(nodes, lead)
	if err := lead.setRole(lead.id(), swarm.NodeRoleWorker); err != nil {
		t.Fatal(err)
	}
	rest[0].voters(2)
	lead.raftIs("the old leader is a worker", func(p *managerPart) bool { return p == nil })
	if err := rest[0].setRole(rest[1].id(), swarm.NodeRoleWorker); err != nil {
		t.Fatal(err)
	}
	rest[0].voters(1)
	err := rest[0].setRole(rest[0].id(), swarm.NodeRoleWorker)
	if err == nil || err.Error() != "attempting to demote the last manager of the swarm" {
		t.Errorf("demoting the last manager: %v", err)
	}
	rest[0].create(spec("alone", 1))
	rest[0].until("all run", alive(3))
}

func TestManagerLeaves(t *testing.T) {
	nodes := managers(t, 3)
	lead := leader(t, nodes)
	id := lead.id()
	rest := without(nodes, lead)
	err := lead.SwarmLeave(t.Context(), false)
	if err == nil || !strings.HasPrefix(err.Error(), leavesManager) || strings.Contains(err.Error(), "last manager") {
		t.Errorf("a manager leaves: %v", err)
	}
	if err := lead.SwarmLeave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	rest[0].voters(2)
	rest[0].untilNode(id, is(swarm.NodeStateDown))
	if err := rest[1].NodeRemove(t.Context(), id, false); err != nil {
		t.Errorf("the node that left can't be removed: %v", err)
	}
	err = rest[0].SwarmLeave(t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), "Removing this node leaves 1 managers out of 2") {
		t.Errorf("one of two leaves: %v", err)
	}
	if err := rest[0].SwarmLeave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	rest[1].voters(1)
	rest[1].create(spec("alone", 1))
}

func TestLeaderlessAdvice(t *testing.T) {
	for _, c := range []struct {
		voters  int
		missing []string
		want    string
	}{
		{3, nil, "3 of 3 managers can be reached: they may be electing a leader right now; try again"},
		{3, []string{"a (a:1)"}, "2 of 3 managers can be reached: they may be electing a leader right now, try again; if one that can't be reached from here leads, write at another manager: a (a:1)"},
		{3, []string{"a (a:1)", "b (b:1)"}, "2 of 3 managers can't be reached: a (a:1), b (b:1). Start 1 of them again; if they are lost for ever, run `docker swarm init --force-new-cluster` here"},
		{2, []string{"a (a:1)"}, "1 of 2 managers can't be reached: a (a:1). Start 1 of them again; if they are lost for ever, run `docker swarm init --force-new-cluster` here"},
		{5, []string{"a", "b", "c", "d"}, "4 of 5 managers can't be reached: a, b, c, d. Start 2 of them again; if they are lost for ever, run `docker swarm init --force-new-cluster` here"},
	} {
		if got := leaderlessAdvice(c.voters, c.missing); got != c.want {
			t.Errorf("%d, %v: %q", c.voters, c.missing, got)
		}
	}
}

func TestCutOffAdvice(t *testing.T) {
	for _, c := range []struct {
		missing []string
		want    string
	}{
		{[]string{"a (a:1)"}, "which is one of the managers that can't be reached from here: a (a:1)."},
		{[]string{"a (a:1)", "b (b:1)"}, "can't be reached from here: a (a:1), b (b:1)."},
		{nil, "which is one whose messages don't come through."},
	} {
		if got := cutOffAdvice("c (c:1)", c.missing); !strings.Contains(got, c.want) || !strings.Contains(got, "use another manager, as c (c:1), which hears the leader") {
			t.Errorf("%v: %q", c.missing, got)
		}
	}
}

func TestNoQuorum(t *testing.T) {
	nodes := managers(t, 3)
	nodes[0].create(spec("web", 2))
	nodes[0].until("two run", alive(2))
	if err := nodes[0].NodeRemove(t.Context(), nodes[1].id(), true); err == nil || !strings.Contains(err.Error(), "must be demoted") {
		t.Errorf("removal of a manager: %v", err)
	}
	gone := []string{nodes[1].id(), nodes[2].id()}
	dirs := []string{nodes[1].kill(), ""}
	if err := nodes[0].setRole(nodes[2].id(), swarm.NodeRoleWorker); err == nil || !strings.Contains(err.Error(), "loss of quorum") {
		t.Errorf("a demotion that loses the quorum: %v", err)
	}
	dirs[1] = nodes[2].kill()
	m := nodes[0]
	_, err := m.ServiceCreate(t.Context(), spec("lost", 1), dockerapi.ServiceOptions{})
	if !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "The swarm does not have a leader") {
		t.Fatalf("a write without quorum: %v", err)
	}
	_, err = m.ServiceCreate(t.Context(), spec("lost", 1), dockerapi.ServiceOptions{})
	if !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "2 of 3 managers can't be reached") || !strings.Contains(err.Error(), "--force-new-cluster") {
		t.Fatalf("a write without quorum: %v", err)
	}
	if list, err := m.ServiceList(t.Context(), nil, false); err != nil || len(list) != 1 {
		t.Errorf("a read without quorum: %d, %v", len(list), err)
	}
	if i := m.info(t.Context()); !strings.Contains(i.Error, "does not have a leader") {
		t.Errorf("info says %q", i.Error)
	}

	starts := m.starts.Load()
	if _, err := m.SwarmInit(t.Context(), &swarm.InitRequest{ForceNewCluster: true, ListenAddr: m.addr(), AdvertiseAddr: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	m.create(spec("again", 1))
	m.until("all that is wanted runs here", func(ts []*api.Task) bool {
		for _, task := range ts {
			if task.DesiredState == swarm.TaskStateRunning && (task.Status.State != swarm.TaskStateRunning || task.NodeID != m.id()) {
				return false
			}
		}
		return len(m.fake.Running()) >= 3
	})
	for _, id := range gone {
		n, err := m.NodeInspect(t.Context(), id)
		if err != nil || n.Spec.Role != swarm.NodeRoleWorker || n.ManagerStatus != nil || n.Status.State != swarm.NodeStateDown {
			t.Errorf("a manager that was left behind: %+v, %v", n, err)
		}
		p, _ := m.leading()
		if n := store.Get[*api.Node](p.store.View(), id); n.DownSince.IsZero() {
			t.Error("one that was left behind is down since ever, so its tasks are orphaned at once")
		}
	}
	if got := m.starts.Load() - starts; got > 3 {
		t.Errorf("%d containers were started", got)
	}
	// The forced swarm lives on after a restart.
	dir := m.dir
	m.end(nil)
	m.open(dir)
	m.create(spec("still", 1))
	// Those left behind still have a quorum of the old swarm; they become workers.
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

// TestLateJoiner gets the state as a snapshot, since the log does not go back so
// far.
func TestLateJoiner(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	s, err := n.SwarmInspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Spec.Raft.SnapshotInterval, s.Spec.Raft.LogEntriesForSlowFollowers = 10, 1
	if err := n.SwarmUpdate(t.Context(), s.Version.Index, &s.Spec, dockerapi.SwarmUpdateFlags{}); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		sec := &swarm.SecretSpec{Data: make([]byte, 100<<10)}
		sec.Name = fmt.Sprint("s", i)
		if _, err := n.SecretCreate(t.Context(), sec); err != nil {
			t.Fatal(err)
		}
	}
	late := newTestNode(t, nil)
	late.joinAsManager(n)
	late.voters(2)
	p, _ := late.leading()
	if p.raft.Status().SnapshotIndex == 0 {
		t.Error("no snapshot was sent: the test is too weak")
	}
	if list, err := late.SecretList(t.Context(), nil); err != nil || len(list) != 60 {
		t.Errorf("%d secrets, %v", len(list), err)
	}
}
