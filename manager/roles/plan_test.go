package roles

import (
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
)

// node makes one of a text: id, wanted role and present role (m or w), raft id.
func node(text string) *api.Node {
	var id string
	var want, is byte
	var raft uint64
	if _, err := fmt.Sscanf(text, "%s %c%c %d", &id, &want, &is, &raft); err != nil {
		panic(err)
	}
	role := func(b byte) swarm.NodeRole {
		if b == 'm' {
			return swarm.NodeRoleManager
		}
		return swarm.NodeRoleWorker
	}
	n := &api.Node{Role: role(is), RaftID: raft}
	n.ID, n.Spec.Role = id, role(want)
	return n
}

// status makes one of a text: voters as numbers, learners as l and a number. The
// leader is 1.
func status(text string) *raftnode.Status {
	st := &raftnode.Status{ID: 1, Leader: 1, IsLeader: true}
	for _, f := range strings.Fields(text) {
		var m raftnode.Member
		number, learner := strings.CutPrefix(f, "l")
		m.Voter = !learner
		if _, err := fmt.Sscan(number, &m.ID); err != nil {
			panic(err)
		}
		st.Members = append(st.Members, m)
	}
	return st
}

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name    string
		nodes   []string
		members string
		want    string
	}{
		{"nothing to do", []string{"a mm 1", "b mm 2", "c ww 0"}, "1 2", ""},
		{"a worker is promoted", []string{"a mm 1", "b mw 0"}, "1", "appoint b"},
		{"it has its certificate, but has not joined", []string{"a mm 1", "b mm 0"}, "1", ""},
		{"it says that it will join", []string{"a mm 1", "b mm 2"}, "1", ""},
		{"it has joined", []string{"a mm 1", "b mm 2"}, "1 l2", "vote 2"},
		{"a manager is demoted", []string{"a mm 1", "b wm 2"}, "1 2", "remove 2"},
		{"then it is no member", []string{"a mm 1", "b wm 2"}, "1", "dismiss b"},
		{"demoted before it joined", []string{"a mm 1", "b wm 0"}, "1", "dismiss b"},
		{"demoted before it was appointed", []string{"a mm 1", "b ww 0"}, "1", ""},
		{"demoted before it could vote", []string{"a mm 1", "b wm 2"}, "1 l2", "remove 2"},
		{"the leader is demoted", []string{"a wm 1", "b mm 2"}, "1 2", "handOver 1"},
		{"the leader and another one", []string{"a wm 1", "b wm 2", "c mm 3"}, "1 2 3", "remove 2"},
		{"one at a time", []string{"a mm 1", "b wm 2", "c wm 3"}, "1 2 3", "remove 2"},
		{"a vote before a removal", []string{"a mm 1", "b wm 2", "c mm 3"}, "1 2 l3", "vote 3, remove 2"},
		{"a node was removed", []string{"a mm 1"}, "1 2", "remove 2"},
		{"a manager came back with another number", []string{"a mm 1", "b mm 3"}, "1 2 l3", "vote 3, remove 2"},
		{"a new swarm", nil, "1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var nodes []*api.Node
			for _, n := range c.nodes {
				nodes = append(nodes, node(n))
			}
			var got []string
			for _, a := range plan(nodes, status(c.members)) {
				if a.verb == appoint || a.verb == dismiss {
					got = append(got, string(a.verb)+" "+a.node)
				} else {
					got = append(got, fmt.Sprint(a.verb, " ", a.member))
				}
			}
			if s := strings.Join(got, ", "); s != c.want {
				t.Errorf("plan: %q; want %q", s, c.want)
			}
		})
	}
}

// TestPlanComesToAnEnd carries out plans on any beginning until nothing is left to
// do: then members and roles are in step, and there was a member at all times.
func TestPlanComesToAnEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, 6).Draw(t, "nodes")
		nodes := map[string]*api.Node{}
		st := &raftnode.Status{ID: 1, Leader: 1, IsLeader: true, Members: []raftnode.Member{{ID: 1, Voter: true}}}
		keeps := false
		for i := range count {
			n := &api.Node{Role: swarm.NodeRoleWorker}
			n.ID = fmt.Sprint("n", i)
			n.Spec.Role = rapid.SampledFrom([]swarm.NodeRole{swarm.NodeRoleManager, swarm.NodeRoleWorker}).Draw(t, "wanted")
			if i == 0 || rapid.Bool().Draw(t, "manager") {
				n.Role, n.RaftID = swarm.NodeRoleManager, uint64(i+1)
				if i > 0 && rapid.Bool().Draw(t, "member") {
					st.Members = append(st.Members, raftnode.Member{ID: n.RaftID, Voter: rapid.Bool().Draw(t, "voter")})
				}
			}
			nodes[n.ID] = n
			keeps = keeps || n.Spec.Role == swarm.NodeRoleManager
		}
		if !keeps { // control refuses
			nodes["n0"].Spec.Role = swarm.NodeRoleManager
		}
		for range 100 {
			var list []*api.Node
			for _, n := range nodes {
				list = append(list, n)
			}
			actions := plan(list, st)
			if joined := joinOne(nodes, st); len(actions) == 0 && !joined {
				inStep(t, nodes, st)
				return
			}
			for _, a := range actions {
				apply(t, a, nodes, st)
			}
		}
		t.Fatal("there is always something to do")
	})
}

// joinOne has a manager that is no member join, as its node would.
func joinOne(nodes map[string]*api.Node, st *raftnode.Status) bool {
	for _, n := range nodes {
		if n.Role != swarm.NodeRoleManager || !wanted(n) || isMember(st, n.RaftID) {
			continue
		}
		n.RaftID = uint64(1000 + len(st.Members))
		st.Members = append(st.Members, raftnode.Member{ID: n.RaftID})
		return true
	}
	return false
}

func isMember(st *raftnode.Status, id uint64) bool {
	for _, m := range st.Members {
		if m.ID == id {
			return true
		}
	}
	return false
}

func apply(t *rapid.T, a action, nodes map[string]*api.Node, st *raftnode.Status) {
	switch a.verb {
	case appoint:
		nodes[a.node].Role, nodes[a.node].RaftID = swarm.NodeRoleManager, 0
	case dismiss:
		nodes[a.node].Role, nodes[a.node].RaftID = swarm.NodeRoleWorker, 0
	case vote:
		for i := range st.Members {
			if st.Members[i].ID == a.member {
				st.Members[i].Voter = true
			}
		}
	case remove:
		if a.member == st.ID {
			t.Fatal("the leader removes itself")
		}
		for i := range st.Members {
			if st.Members[i].ID == a.member {
				st.Members = append(st.Members[:i:i], st.Members[i+1:]...)
				break
			}
		}
	case handOver:
		for _, m := range st.Members {
			if m.Voter && m.ID != st.ID {
				st.ID, st.Leader = m.ID, m.ID
				return
			}
		}
	}
}

func inStep(t *rapid.T, nodes map[string]*api.Node, st *raftnode.Status) {
	for _, n := range nodes {
		if manager := n.Role == swarm.NodeRoleManager; manager != wanted(n) || manager != isMember(st, n.RaftID) {
			t.Fatalf("%s is wanted as %s, is %s, raft %d of %+v", n.ID, n.Spec.Role, n.Role, n.RaftID, st.Members)
		}
	}
	for _, m := range st.Members {
		if !m.Voter {
			t.Fatalf("%+v has no vote", m)
		}
	}
}
