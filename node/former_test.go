package node

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
)

// TestFormer: a certificate of a manager that was demoted is told from one of a
// manager that was promoted since this one heard of it.
func TestFormer(t *testing.T) {
	root, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(role swarm.NodeRole, at time.Time) []byte {
		_, csr, err := ca.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := root.Issue(csr, ca.Identity{NodeID: "n", Role: role, Cluster: "c"}, 0, at)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	now := time.Now()
	old, promoted := issue(swarm.NodeRoleManager, now.Add(-time.Minute)), issue(swarm.NodeRoleManager, now)
	worker := issue(swarm.NodeRoleWorker, now.Add(-30*time.Second))
	for _, c := range []struct {
		name             string
		role             swarm.NodeRole
		known, presented []byte
		want             bool
	}{
		{"a manager", swarm.NodeRoleManager, old, old, false},
		{"demoted, not renewed", swarm.NodeRoleWorker, old, old, true},
		{"demoted, renewed as worker", swarm.NodeRoleWorker, worker, old, true},
		{"promoted since", swarm.NodeRoleWorker, worker, promoted, false},
		{"never issued, as far as is known", swarm.NodeRoleWorker, nil, promoted, false},
	} {
		s, err := store.NewLocal(store.Config{})
		if err != nil {
			t.Fatal(err)
		}
		n := &api.Node{Role: c.role}
		n.ID, n.Certificate.Cert = "n", c.known
		if _, err := s.Update(t.Context(), func(tx *store.Tx) error { return store.Create(tx, n) }); err != nil {
			t.Fatal(err)
		}
		leaf, err := ca.ParseLeaf(c.presented)
		if err != nil {
			t.Fatal(err)
		}
		p := &managerPart{store: s}
		if got := p.Former(rpc.Peer{Identity: ca.Identity{NodeID: "n"}, Leaf: leaf}); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		if p.Former(rpc.Peer{Identity: ca.Identity{NodeID: "unknown"}, Leaf: leaf}) {
			t.Errorf("%s: so is a node that is not known", c.name)
		}
	}
}
