package ca_test

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/ca"
)

// What a node takes that waited for it, and what not.
func TestWaiting(t *testing.T) {
	old, next, other := root(t), root(t), root(t)
	cross, err := old.CrossSign(next, now())
	if err != nil {
		t.Fatal(err)
	}
	mine := ca.Identity{NodeID: "n", Role: swarm.NodeRoleWorker, Cluster: "c"}
	key, csr, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	_, csr2, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(r *ca.Root, csr []byte, id ca.Identity, at time.Time) []byte {
		t.Helper()
		cert, err := r.Issue(csr, id, 2*time.Hour, at)
		if err != nil {
			t.Fatal(err)
		}
		return append(cert, cross...)
	}
	keys, err := ca.NewKeys(old, sign(old, csr, mine, now()), key, now())
	if err != nil {
		t.Fatal(err)
	}
	later := now().Add(time.Minute)
	stranger, elsewhere := mine, mine
	stranger.NodeID, elsewhere.Cluster = "m", "d"
	for _, c := range []struct {
		name  string
		cert  []byte
		err   string
		taken bool
	}{
		{name: "good", cert: sign(next, csr, mine, later), taken: true},
		{name: "of the same root, which may be vouched for by others now", cert: sign(old, csr, mine, later), taken: true},
		{name: "older", cert: sign(next, csr, mine, now().Add(-time.Minute))},
		{name: "another key", cert: sign(next, csr2, mine, later), err: "not for the key"},
		{name: "another node", cert: sign(next, csr, stranger, later), err: "not for this node"},
		{name: "another swarm", cert: sign(next, csr, elsewhere, later), err: "not for this node"},
		{name: "a root that nobody vouches for", cert: sign(other, csr, mine, later), err: "unknown authority"},
		{name: "nonsense", cert: []byte("x"), err: "no PEM certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := keys.Waiting(c.cert, later)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v; want %q", err, c.err)
				}
				return
			}
			if err != nil || (got != nil) != c.taken {
				t.Errorf("taken %v, %v", got != nil, err)
			}
		})
	}
	if _, err := keys.Waiting(sign(next, csr, mine, later), later.Add(24*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
}
