package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/store"
)

// updateSwarm changes the swarm's spec as the docker CLI does.
func (n *testNode) updateSwarm(f dockerapi.SwarmUpdateFlags, fn func(*swarm.Spec)) error {
	n.t.Helper()
	s, err := n.SwarmInspect(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	fn(&s.Spec)
	return n.SwarmUpdate(n.t.Context(), s.Version.Index, &s.Spec, f)
}

// untilRotated waits as `docker swarm ca --rotate` does: for all nodes to say
// that they have a certificate of the root, and trust nothing else.
func (n *testNode) untilRotated() *swarm.Swarm {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	p, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	_, w := p.store.Watch(store.KindCluster, store.KindNode)
	defer w.Close()
	for {
		s, err := n.SwarmInspect(ctx)
		if err != nil {
			n.t.Fatal(err)
		}
		nodes, err := n.NodeList(ctx, nil)
		if err != nil {
			n.t.Fatal(err)
		}
		right := 0
		for _, o := range nodes {
			tls := o.Description.TLSInfo
			if bytes.Equal(tls.CertIssuerPublicKey, s.TLSInfo.CertIssuerPublicKey) && tls.TrustRoot == s.TLSInfo.TrustRoot {
				right++
			}
		}
		if right == len(nodes) && !s.RootRotationInProgress {
			return s
		}
		if _, err := w.Next(ctx); err != nil {
			n.t.Fatalf("%d of %d nodes have what they should, rotating: %v: %v", right, len(nodes), s.RootRotationInProgress, err)
		}
	}
}

func TestRootRotation(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.create(spec("web", 2))
	n.until("two run", alive(2))
	before := n.untilRotated()
	if err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ForceRotate++ }); err != nil {
		t.Fatal(err)
	}
	after := n.untilRotated()
	if after.TLSInfo.TrustRoot == before.TLSInfo.TrustRoot || after.JoinTokens.Worker == before.JoinTokens.Worker || after.JoinTokens.Manager == before.JoinTokens.Manager {
		t.Error("root and tokens should be others")
	}
	token, err := ca.ParseToken(after.JoinTokens.Worker)
	if err != nil || !token.Trusts([]byte(after.TLSInfo.TrustRoot)) {
		t.Errorf("the token is not for the new root: %v", err)
	}
	onDisk, err := os.ReadFile(filepath.Join(n.dir, certificatesDir, "swarm-root-ca.crt"))
	if err != nil || string(onDisk) != after.TLSInfo.TrustRoot {
		t.Errorf("the root on disk is not the new one: %v", err)
	}
	dir := n.dir
	n.end(nil)
	n.open(dir)
	n.until("two run after a restart", alive(2))
	if starts := n.starts.Load(); starts != 2 {
		t.Errorf("%d containers were started; want 2: a rotation touches no task", starts)
	}
	n.untilRotated()
}

// A root that the user brings; then another one before the first is through, and
// back: whatever is under way, the last one wins and no node is lost.
func TestRootRotationChangesItsMind(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.untilRotated()
	p, err := n.leading()
	if err != nil {
		t.Fatal(err)
	}
	var original *api.RootCA
	for c := range store.List[*api.Cluster](p.store.View()) {
		original = &c.RootCA
	}
	give := func(cert, key []byte) {
		t.Helper()
		err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) {
			s.CAConfig.SigningCACert, s.CAConfig.SigningCAKey = string(cert), string(key)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	own := func() (cert, key []byte) {
		r, err := ca.NewRoot(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if key, err = r.KeyPEM(); err != nil {
			t.Fatal(err)
		}
		return r.CertPEM(), key
	}
	first, firstKey := own()
	second, secondKey := own()
	give(first, firstKey)
	give(second, secondKey)
	give(original.Cert, original.Key)
	n.untilRotated()
	give(first, firstKey)
	give(second, secondKey)
	if s := n.untilRotated(); s.TLSInfo.TrustRoot != string(second) {
		t.Error("the last root given is not the swarm's")
	}
	if s, _ := n.SwarmInspect(t.Context()); s.Spec.CAConfig.SigningCAKey != "" {
		t.Error("the key is shown")
	}
}
