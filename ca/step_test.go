package ca_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

func TestNextKeepsToItsWindow(t *testing.T) {
	old, next := root(t), root(t)
	cross, err := old.CrossSign(next, now())
	if err != nil {
		t.Fatal(err)
	}
	key, _ := old.KeyPEM()
	r, err := ca.Begin(&api.RootCA{Cert: old.CertPEM(), Key: key}, next, cross, now())
	if err != nil {
		t.Fatal(err)
	}
	subject, public := issue(t, old, swarm.NodeRoleWorker).Issuer()
	var nodes []*api.Node
	for i := range 500 {
		n := &api.Node{Certificate: api.Certificate{State: api.CertificateIssued}}
		n.ID, n.Status.State = fmt.Sprint(i), swarm.NodeStateReady
		n.Description.TLSInfo = swarm.TLSInfo{CertIssuerSubject: subject, CertIssuerPublicKey: public}
		if i >= 400 {
			n.Status.State = swarm.NodeStateDown
		}
		nodes = append(nodes, n)
	}
	step, err := ca.Next(r, nodes, now())
	if err != nil || step.Left != 500 || len(step.Renew) != 100+128 || step.Done {
		t.Fatalf("%d are asked, %d left, %v; want the 100 that are down and 128 others", len(step.Renew), step.Left, err)
	}
	for _, id := range step.Renew {
		for _, n := range nodes {
			if n.ID == id {
				n.Certificate.State = api.CertificateRotate
			}
		}
	}
	if step, _ = ca.Next(r, nodes, now()); len(step.Renew) != 0 {
		t.Errorf("%d more are asked before others are done", len(step.Renew))
	}
}

// A node that lost the certificate it was issued is asked again, but not at once.
func TestNextAsksAgain(t *testing.T) {
	old, next := root(t), root(t)
	cross, _ := old.CrossSign(next, now())
	r, err := ca.Begin(&api.RootCA{Cert: old.CertPEM()}, next, cross, now())
	if err != nil {
		t.Fatal(err)
	}
	subject, public := issue(t, old, swarm.NodeRoleWorker).Issuer()
	n := &api.Node{Certificate: api.Certificate{State: api.CertificateIssued, Cert: append(issue(t, next, swarm.NodeRoleWorker).Cert, cross...)}}
	n.ID, n.Status.State = "n", swarm.NodeStateReady
	n.Description.TLSInfo = swarm.TLSInfo{CertIssuerSubject: subject, CertIssuerPublicKey: public}
	step, _ := ca.Next(r, []*api.Node{n}, now())
	if len(step.Renew) != 0 || !step.Again.Equal(now().Add(time.Minute)) {
		t.Errorf("at once: %+v", step)
	}
	if step, _ = ca.Next(r, []*api.Node{n}, step.Again); len(step.Renew) != 1 {
		t.Errorf("after a minute: %+v", step)
	}
	if step, _ = ca.Next(r, []*api.Node{n}, now().Add(-2*time.Hour)); len(step.Renew) != 1 {
		t.Errorf("after a clock was set back: %+v", step)
	}
	n.Status.State, n.DownSince = swarm.NodeStateDown, now()
	if step, _ = ca.Next(r, []*api.Node{n}, now().Add(9*time.Second)); len(step.Renew) != 0 || step.Left != 1 {
		t.Errorf("while it is down: %+v", step)
	}
}

// A rotation is given up after a node had got a certificate of the root that was to come:
// the present root has vouched for that, and yet the node is asked for another at once.
func TestNextAfterARotationGivenUp(t *testing.T) {
	old, next := root(t), root(t)
	cross, _ := old.CrossSign(next, now())
	given := issue(t, next, swarm.NodeRoleWorker)
	subject, public := given.Issuer()
	n := &api.Node{Certificate: api.Certificate{State: api.CertificateIssued, Cert: append(given.Cert, cross...)}}
	n.ID, n.Status.State = "n", swarm.NodeStateReady
	n.Description.TLSInfo = swarm.TLSInfo{TrustRoot: string(old.CertPEM()), CertIssuerSubject: subject, CertIssuerPublicKey: public}
	step, err := ca.Next(&api.RootCA{Cert: old.CertPEM()}, []*api.Node{n}, now())
	if err != nil || len(step.Renew) != 1 {
		t.Errorf("%+v, %v", step, err)
	}
}

// The nodes that are away, and when a certificate is signed without them.
func TestNextWithoutAbsentNodes(t *testing.T) {
	old, next := root(t), root(t)
	cross, _ := old.CrossSign(next, now())
	begun := now()
	r, err := ca.Begin(&api.RootCA{Cert: old.CertPEM()}, next, cross, begun)
	if err != nil {
		t.Fatal(err)
	}
	subject, public := issue(t, old, swarm.NodeRoleWorker).Issuer()
	waits := swarm.TLSInfo{TrustRoot: string(next.CertPEM()), CertIssuerSubject: next.Subject(), CertIssuerPublicKey: next.PublicKey()}
	both := waits
	both.TrustRoot = string(ca.Trusted(r))
	for _, c := range []struct {
		name   string
		node   func(*api.Node)
		after  time.Duration // the rotation began
		absent bool
		left   int
		done   bool
		again  time.Duration // when to look again; 0: any time
	}{
		{name: "down for long", after: 10 * time.Second, absent: true, left: 1},
		{name: "down for long, the rotation has just begun", after: 9 * time.Second, left: 1, again: 10 * time.Second},
		{name: "down since a moment", node: func(n *api.Node) { n.DownSince = begun.Add(time.Hour) }, after: time.Hour + 9*time.Second, left: 1, again: time.Hour + 10*time.Second},
		{name: "down, and then a clock was set back", node: func(n *api.Node) { n.DownSince = begun.Add(24 * time.Hour) }, after: time.Hour, absent: true, left: 1},
		{name: "unknown, its manager is gone", node: func(n *api.Node) { n.Status.State = swarm.NodeStateUnknown; n.Session.ID = "s" }, after: time.Hour, left: 1},
		{name: "never heard of", node: func(n *api.Node) { n.Status.State = swarm.NodeStateUnknown }, after: time.Hour, absent: true, left: 1},
		{name: "its certificate waits", node: func(n *api.Node) { n.Description.TLSInfo = waits }, after: time.Hour, done: true},
		{name: "it went with both roots", node: func(n *api.Node) { n.Description.TLSInfo = both }, after: time.Hour, absent: true, left: 1},
		{name: "it is being signed for", node: func(n *api.Node) { n.Certificate.State = api.CertificateRenew }, after: time.Hour, left: 1},
		{name: "it was asked to renew", node: func(n *api.Node) { n.Certificate.State = api.CertificateRotate }, after: time.Hour, absent: true, left: 1},
		{name: "nothing to sign", node: func(n *api.Node) { n.Certificate.CSR = nil }, after: time.Hour, done: true},
		{name: "it can't be signed", node: func(n *api.Node) { n.Certificate.State, n.Certificate.Waiting = api.CertificateFailed, true }, after: time.Hour, done: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &api.Node{Certificate: api.Certificate{CSR: []byte("csr"), State: api.CertificateIssued}}
			n.ID, n.Status.State, n.DownSince = "n", swarm.NodeStateDown, begun.Add(-time.Hour)
			n.Description.TLSInfo = swarm.TLSInfo{TrustRoot: string(old.CertPEM()), CertIssuerSubject: subject, CertIssuerPublicKey: public}
			if c.node != nil {
				c.node(n)
			}
			s, err := ca.Next(r, []*api.Node{n}, begun.Add(c.after))
			if err != nil || len(s.Absent) == 1 != c.absent || s.Left != c.left || s.Done != c.done || c.again != 0 && !s.Again.Equal(begun.Add(c.again)) {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
	// One that is back is asked at once: it may not know of what waits.
	n := &api.Node{Certificate: api.Certificate{State: api.CertificateIssued, Waiting: true, Cert: append(issue(t, next, swarm.NodeRoleWorker).Cert, cross...)}}
	n.ID, n.Status.State = "n", swarm.NodeStateReady
	n.Description.TLSInfo = swarm.TLSInfo{TrustRoot: string(old.CertPEM()), CertIssuerSubject: subject, CertIssuerPublicKey: public}
	if s, _ := ca.Next(r, []*api.Node{n}, begun); len(s.Renew) != 1 {
		t.Errorf("back: %+v", s)
	}
}

// The leader asks this after every change of a node while a rotation is under way.
func BenchmarkNext(b *testing.B) {
	old, next := root(b), root(b)
	cross, _ := old.CrossSign(next, now())
	r, err := ca.Begin(&api.RootCA{Cert: old.CertPEM()}, next, cross, now())
	if err != nil {
		b.Fatal(err)
	}
	nodes := make([]*api.Node, 10_000)
	for i := range nodes {
		k := issue(b, old, swarm.NodeRoleWorker)
		if i%2 == 0 {
			k = issue(b, next, swarm.NodeRoleWorker)
		}
		nodes[i] = &api.Node{Certificate: api.Certificate{State: api.CertificateIssued, Cert: k.Cert}}
		if i%2 == 0 {
			nodes[i].Certificate.Cert = append(k.Cert, cross...)
		}
		nodes[i].ID, nodes[i].Status.State = fmt.Sprint(i), swarm.NodeStateReady
		subject, public := k.Issuer()
		nodes[i].Description.TLSInfo = swarm.TLSInfo{TrustRoot: string(ca.Trusted(r)), CertIssuerSubject: subject, CertIssuerPublicKey: public}
	}
	for b.Loop() {
		if _, err := ca.Next(r, nodes, now()); err != nil {
			b.Fatal(err)
		}
	}
}
