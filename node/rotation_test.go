package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/ca/catest"
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

func bringRoot(t *testing.T) *ca.Root {
	t.Helper()
	r, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func externalCA(url string, root *ca.Root) []*swarm.ExternalCA {
	return []*swarm.ExternalCA{{Protocol: swarm.ExternalCAProtocolCFSSL, URL: url, CACert: string(root.CertPEM())}}
}

// The root's key leaves the swarm for an external CA, which then signs.
func TestRotateToExternalCA(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.untilRotated()
	next := bringRoot(t)
	present, err := ca.ParseRoot(n.trusts().CertPEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	o := catest.Serve(t, next, present)
	stranger := catest.Serve(t, bringRoot(t), present)
	give := func(url string) error {
		return n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) {
			s.CAConfig.SigningCACert, s.CAConfig.ExternalCAs = string(next.CertPEM()), externalCA(url, next)
		})
	}
	if err := give(stranger.URL); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "valid, reachable external CA") {
		t.Errorf("an external CA of another root: %v", err)
	}
	if err := give(o.URL); err != nil {
		t.Fatal(err)
	}
	if s := n.untilRotated(); s.TLSInfo.TrustRoot != string(next.CertPEM()) {
		t.Error("the root is not the external CA's")
	}
	if o.Signed() == 0 {
		t.Error("the external CA signed nothing")
	}
	// Other changes don't ask the external CA; taking it away is refused.
	o.Close()
	if err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.Orchestration.TaskHistoryRetentionLimit = new(int64(1)) }); err != nil {
		t.Error(err)
	}
	err = n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ExternalCAs = nil })
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "does not have its key") {
		t.Errorf("nobody could sign any more: %v", err)
	}
	// The way back: the key is given to the swarm.
	key, err := next.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	err = n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) {
		s.CAConfig.SigningCACert, s.CAConfig.SigningCAKey, s.CAConfig.ExternalCAs = string(next.CertPEM()), string(key), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ForceRotate++ }); err != nil {
		t.Fatal(err)
	}
	n.untilRotated()
}

// trusts returns what the node trusts.
func (n *testNode) trusts() *ca.Root {
	n.t.Helper()
	r, err := n.current()
	if r == nil {
		n.t.Fatal(err)
	}
	return r.creds.Keys().Root
}

func TestInitWithExternalCA(t *testing.T) {
	root := bringRoot(t)
	begin := func(url string, cert string) (*testNode, error) {
		n := newTestNode(t, nil)
		r := &swarm.InitRequest{ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1"}
		r.Spec.CAConfig.ExternalCAs = externalCA(url, root)
		r.Spec.CAConfig.ExternalCAs[0].CACert = cert
		_, err := n.SwarmInit(t.Context(), r)
		return n, err
	}
	o := catest.ServeAnyone(t, root)
	n, err := begin(o.URL, string(root.CertPEM()))
	if err != nil {
		t.Fatal(err)
	}
	if o.Signed() != 1 || n.trusts().Digest() != root.Digest() {
		t.Errorf("the external CA signed %d", o.Signed())
	}
	// Without its root it is one for the swarm's own, whose key the first node has: it
	// is not asked yet.
	const away = "https://127.0.0.1:1/sign"
	n, err = begin(away, "")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := n.SwarmInspect(t.Context()); err != nil || s.Spec.CAConfig.ExternalCAs[0].URL != away {
		t.Errorf("%+v, %v", s.Spec.CAConfig, err)
	}
	if err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ExternalCAs[0].URL = away + "2" }); err != nil {
		t.Error(err)
	}
	if _, err := begin(catest.Serve(t, root).URL, string(root.CertPEM())); !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "swarm ca --rotate") {
		t.Errorf("one that asks for a certificate: %v", err)
	}
}

func TestInitWithOwnRoot(t *testing.T) {
	n := newTestNode(t, nil)
	root := bringRoot(t)
	key, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	r := &swarm.InitRequest{ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1"}
	r.Spec.CAConfig.SigningCACert, r.Spec.CAConfig.SigningCAKey = string(root.CertPEM()), string(key)
	if _, err := n.SwarmInit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if n.trusts().Digest() != root.Digest() {
		t.Error("the swarm has another root")
	}
	if err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ForceRotate++ }); err != nil {
		t.Fatal(err)
	}
	if n.untilRotated(); n.trusts().Digest() == root.Digest() {
		t.Error("the root was not rotated")
	}
}

// A swarm of one manager whose certificate has expired comes back by itself.
func TestExpiredCertificate(t *testing.T) {
	then := time.Now().Add(-48 * time.Hour)
	root, err := ca.NewRoot(then)
	if err != nil {
		t.Fatal(err)
	}
	key, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	n := newTestNode(t, nil)
	r := &swarm.InitRequest{ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1"}
	r.Spec.CAConfig.SigningCACert, r.Spec.CAConfig.SigningCAKey = string(root.CertPEM()), string(key)
	if _, err := n.SwarmInit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	n.create(spec("web", 1))
	n.until("one runs", alive(1))
	cur, err := n.current()
	if cur == nil {
		t.Fatal(err)
	}
	old := cur.creds.Keys()
	id := old.Identity()
	dir := n.dir
	n.end(nil)

	nodeKey, csr, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := root.Issue(csr, id, 2*time.Hour, then)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ca.NewKeys(root, cert, nodeKey, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := keyFiles(dir).Save(keys.WithLogKeys(old.LogKeys()), nil); err != nil {
		t.Fatal(err)
	}
	n.open(dir)
	n.until("one is there", func(ts []*api.Task) bool { return len(ts) == 1 })
	n.change("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(2))} })
	n.until("its agent works", alive(2))
	stored, err := keyFiles(dir).Load(nil, time.Now())
	if err != nil || time.Until(stored.Leaf().NotAfter) < time.Hour {
		t.Errorf("on disk: %v", err)
	}
}
