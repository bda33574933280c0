package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/ca/catest"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

type callerKey struct{}

// as returns a context in which the node calls; "" is a caller without certificate.
func as(ctx context.Context, id string, role swarm.NodeRole) context.Context {
	return context.WithValue(ctx, callerKey{}, ca.Identity{NodeID: id, Role: role, Cluster: "cluster"})
}

// fixture is an issuer over a store of its own.
type fixture struct {
	*issuer.Issuer
	t        *testing.T
	store    *store.Store
	root     *ca.Root
	external *issuer.External
}

func newRoot(t testing.TB) *ca.Root {
	t.Helper()
	r, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func setUp(t *testing.T) *fixture {
	t.Helper()
	s, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, store: s, root: newRoot(t)}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	own := f.keys(f.root, ca.Identity{NodeID: "manager1", Role: swarm.NodeRoleManager, Cluster: "cluster"})
	f.external, err = issuer.NewExternal(issuer.ExternalConfig{
		Certificate: func() (*tls.Certificate, error) { c, err := own.TLS(); return &c, err }, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Issuer, err = issuer.New(issuer.Config{
		Store: s, External: f.external, Log: log,
		Peer: func(ctx context.Context) (ca.Identity, string, bool) {
			id, ok := ctx.Value(callerKey{}).(ca.Identity)
			return id, "127.0.0.1:1", ok
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	key, err := f.root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	c := &api.Cluster{
		RootCA:     api.RootCA{Cert: f.root.CertPEM(), Key: key, Digest: f.root.Digest()},
		JoinTokens: swarm.JoinTokens{Worker: ca.NewToken(f.root), Manager: ca.NewToken(f.root)}, UnlockKey: []byte("unlock"),
	}
	c.ID = "cluster"
	c.Spec.CAConfig.NodeCertExpiry = 2 * time.Hour
	f.write(func(tx *store.Tx) error { return store.Create(tx, c) })
	return f
}

func (f *fixture) keys(r *ca.Root, id ca.Identity) *ca.Keys {
	f.t.Helper()
	key, csr := request(f.t)
	cert, err := r.Issue(csr, id, time.Hour, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	k, err := ca.NewKeys(r, cert, key, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	return k
}

func request(t testing.TB) (key, csr []byte) {
	t.Helper()
	key, csr, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func (f *fixture) write(fn func(tx *store.Tx) error) {
	f.t.Helper()
	if _, err := f.store.Update(f.t.Context(), fn); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) cluster() *api.Cluster {
	return store.Get[*api.Cluster](f.store.View(), "cluster")
}

func (f *fixture) change(fn func(*api.Cluster)) {
	f.t.Helper()
	f.write(func(tx *store.Tx) error {
		c := *store.Get[*api.Cluster](tx, "cluster")
		fn(&c)
		return store.Put(tx, &c)
	})
}

// run runs a loop of the leader until the test ends.
func (f *fixture) run(loop func(context.Context) error) {
	ctx, stop := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- loop(ctx) }()
	f.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

// ask does what a node does: request and wait.
func (f *fixture) ask(ctx context.Context, token string) (id string, c *swarmpb.Certificate) {
	f.t.Helper()
	_, csr := request(f.t)
	r, err := f.IssueNodeCertificate(ctx, &swarmpb.IssueNodeCertificateRequest{Csr: csr, Token: token})
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := f.NodeCertificateStatus(ctx, &swarmpb.NodeCertificateStatusRequest{NodeId: r.GetNodeId()})
	if err != nil {
		f.t.Fatal(err)
	}
	return r.GetNodeId(), s.GetCertificate()
}

func refused(t *testing.T, err error, class api.Class, words string) {
	t.Helper()
	if !api.Is(err, class) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v; want class %v with %q", err, class, words)
	}
}

func TestJoinAndRenew(t *testing.T) {
	f := setUp(t)
	anyone := as(t.Context(), "", "")
	for role, token := range map[swarm.NodeRole]string{swarm.NodeRoleWorker: f.cluster().JoinTokens.Worker, swarm.NodeRoleManager: f.cluster().JoinTokens.Manager} {
		id, c := f.ask(anyone, token)
		leaf, who, err := f.root.Verify(c.GetCertificate(), time.Now())
		if err != nil || who != (ca.Identity{NodeID: id, Role: role, Cluster: "cluster"}) || time.Until(leaf.NotAfter) > 2*time.Hour {
			t.Fatalf("%+v until %v, %v", who, leaf.NotAfter, err)
		}
		again, c := f.ask(as(t.Context(), id, role), "")
		if _, who, err := f.root.Verify(c.GetCertificate(), time.Now()); err != nil || again != id || who.NodeID != id {
			t.Errorf("renewed as %+v, %v", who, err)
		}
	}
}

// What stands in a request beside its key is ignored.
func TestNamesComeFromTheManager(t *testing.T) {
	f := setUp(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "manager1", OrganizationalUnit: []string{ca.ManagerOU}, Organization: []string{"cluster"}},
		DNSNames: []string{ca.ManagerOU, "evil.example"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	r, err := f.IssueNodeCertificate(as(t.Context(), "", ""), &swarmpb.IssueNodeCertificateRequest{Csr: csr, Token: f.cluster().JoinTokens.Worker, Role: swarmpb.NodeRole_MANAGER})
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.NodeCertificateStatus(t.Context(), &swarmpb.NodeCertificateStatusRequest{NodeId: r.GetNodeId()})
	if err != nil {
		t.Fatal(err)
	}
	leaf, who, err := f.root.Verify(s.GetCertificate().GetCertificate(), time.Now())
	if err != nil || who.NodeID != r.GetNodeId() || who.Role != swarm.NodeRoleWorker || leaf.VerifyHostname("evil.example") == nil || leaf.VerifyHostname(ca.ManagerOU) == nil {
		t.Errorf("%+v for %q, %v", who, leaf.DNSNames, err)
	}
}

func TestRefusals(t *testing.T) {
	f := setUp(t)
	anyone := as(t.Context(), "", "")
	_, csr := request(t)
	issue := func(ctx context.Context, csr []byte, token string) error {
		_, err := f.IssueNodeCertificate(ctx, &swarmpb.IssueNodeCertificateRequest{Csr: csr, Token: token})
		return err
	}
	worker := f.cluster().JoinTokens.Worker
	refused(t, issue(anyone, csr, ""), api.Invalid, "valid join token")
	refused(t, issue(anyone, csr, worker[:len(worker)-1]+"!"), api.Invalid, "valid join token")
	refused(t, issue(anyone, []byte("x"), worker), api.Invalid, "certificate request")
	refused(t, issue(as(t.Context(), "gone", swarm.NodeRoleWorker), csr, ""), api.NotFound, "was removed")
	f.change(func(c *api.Cluster) { c.JoinTokens.Worker = ca.NewToken(f.root) })
	refused(t, issue(anyone, csr, worker), api.Invalid, "rotated")
	_, err := f.NodeCertificateStatus(anyone, &swarmpb.NodeCertificateStatusRequest{NodeId: "gone"})
	refused(t, err, api.NotFound, "not part of the swarm")

	id, _ := f.ask(anyone, f.cluster().JoinTokens.Worker)
	for range 20 {
		if err = issue(as(t.Context(), id, swarm.NodeRoleWorker), csr, ""); err != nil {
			break
		}
	}
	refused(t, err, api.ResourceExhausted, "too often")
}

func TestUnlockKeyIsForManagers(t *testing.T) {
	f := setUp(t)
	worker, _ := f.ask(as(t.Context(), "", ""), f.cluster().JoinTokens.Worker)
	manager, _ := f.ask(as(t.Context(), "", ""), f.cluster().JoinTokens.Manager)
	r, err := f.GetUnlockKey(as(t.Context(), manager, swarm.NodeRoleManager), &swarmpb.GetUnlockKeyRequest{})
	if err != nil || string(r.GetUnlockKey()) != "unlock" {
		t.Errorf("%v", err)
	}
	for who, ctx := range map[string]context.Context{
		"anyone": as(t.Context(), "", ""), "a worker": as(t.Context(), worker, swarm.NodeRoleWorker),
		"a manager that was demoted": as(t.Context(), worker, swarm.NodeRoleManager), "one that was removed": as(t.Context(), "gone", swarm.NodeRoleManager),
	} {
		_, err := f.GetUnlockKey(ctx, &swarmpb.GetUnlockKeyRequest{})
		if !api.Is(err, api.PermissionDenied) {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// A swarm whose root's key is with an external CA only.
func TestExternalCA(t *testing.T) {
	f := setUp(t)
	o := catest.Serve(t, f.root)
	f.change(func(c *api.Cluster) {
		c.RootCA.Key = nil
		c.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{{Protocol: swarm.ExternalCAProtocolCFSSL, URL: o.URL}}
	})
	f.run(f.Run)
	anyone := as(t.Context(), "", "")
	id, c := f.ask(anyone, f.cluster().JoinTokens.Manager)
	if _, who, err := f.root.Verify(c.GetCertificate(), time.Now()); err != nil || who.NodeID != id || who.Role != swarm.NodeRoleManager {
		t.Fatalf("%+v, %v", who, err)
	}
	if o.Signed() != 1 {
		t.Errorf("the external CA signed %d times", o.Signed())
	}
	o.Answer = func(w http.ResponseWriter) bool {
		_, _ = w.Write([]byte(`{"success":false,"errors":[{"code":1,"message":"policy"}]}`))
		return true
	}
	if _, c = f.ask(anyone, f.cluster().JoinTokens.Worker); c.GetStatus().GetState() != swarmpb.IssuanceStatus_FAILED || !strings.Contains(c.GetStatus().GetErr(), "policy") {
		t.Errorf("a refusal: %v", c.GetStatus())
	}
	o.Answer = nil
	o.Change = func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{ca.ManagerOU} }
	if _, c = f.ask(anyone, f.cluster().JoinTokens.Worker); c.GetStatus().GetState() != swarmpb.IssuanceStatus_FAILED || !strings.Contains(c.GetStatus().GetErr(), "names are not those") {
		t.Errorf("more than was asked for: %v", c.GetStatus())
	}
	o.Change = nil
	// One that is away for a moment is asked again; who waits is told why.
	tries := 0
	o.Answer = func(w http.ResponseWriter) bool {
		if tries++; tries == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
		return tries == 1
	}
	id, c = f.ask(anyone, f.cluster().JoinTokens.Worker)
	if c.GetStatus().GetState() != swarmpb.IssuanceStatus_PENDING || !strings.Contains(c.GetStatus().GetErr(), "502") {
		t.Errorf("while it is away: %v", c.GetStatus())
	}
	f.until("it is signed", func() bool {
		return store.Get[*api.Node](f.store.View(), id).Certificate.State != api.CertificatePending
	})
	s, err := f.NodeCertificateStatus(anyone, &swarmpb.NodeCertificateStatusRequest{NodeId: id})
	if err != nil {
		t.Fatal(err)
	}
	c = s.GetCertificate()
	if c.GetStatus().GetState() != swarmpb.IssuanceStatus_ISSUED || c.GetStatus().GetErr() != "" {
		t.Errorf("after a failure: %v", c.GetStatus())
	}
}

func TestExternalCAIsAuthenticated(t *testing.T) {
	f := setUp(t)
	foreign := newRoot(t)
	mine, other := catest.Serve(t, f.root), catest.Serve(t, foreign)
	if err := f.external.Check(t.Context(), []string{other.URL, mine.URL}, f.root); err != nil {
		t.Errorf("one of two answers: %v", err)
	}
	refused(t, f.external.Check(t.Context(), []string{other.URL}, f.root), api.Invalid, "valid, reachable external CA")
	refused(t, f.external.Check(t.Context(), nil, f.root), api.Invalid, "none is configured")
	// It does not know this manager's certificate.
	refused(t, f.external.Check(t.Context(), []string{other.URL}, foreign), api.Invalid, "certificate")
	redirect := catest.Serve(t, f.root)
	redirect.Answer = func(w http.ResponseWriter) bool {
		w.Header().Set("Location", mine.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	}
	_, csr := request(t)
	_, err := f.external.Sign(t.Context(), []string{redirect.URL}, f.root, csr, ca.Identity{NodeID: "n", Role: swarm.NodeRoleWorker, Cluster: "c"})
	refused(t, err, api.Unavailable, "redirects")
	flood := catest.Serve(t, f.root)
	flood.Answer = func(w http.ResponseWriter) bool {
		_, _ = w.Write(make([]byte, ca.MaxCFSSLResponse+2))
		return true
	}
	_, err = f.external.Sign(t.Context(), []string{flood.URL}, f.root, csr, ca.Identity{NodeID: "n", Role: swarm.NodeRoleWorker, Cluster: "c"})
	refused(t, err, api.Unavailable, "more than")
	cross, err := f.external.CrossSign(t.Context(), []string{mine.URL}, f.root, newRoot(t))
	if err != nil || len(cross) == 0 {
		t.Errorf("cross-signing: %v", err)
	}
}

// Nodes that do as they are asked have new certificates; one that is away holds
// the end up.
func TestRotate(t *testing.T) {
	f := setUp(t)
	anyone := as(t.Context(), "", "")
	var ids []string
	report := func(id string, cert []byte, trust []byte) {
		f.write(func(tx *store.Tx) error {
			n := *store.Get[*api.Node](tx, id)
			root, err := ca.ParseRoot(trust, nil)
			if err != nil {
				return err
			}
			leaf, err := ca.ParseLeaf(cert)
			if err != nil {
				return err
			}
			n.Status.State = swarm.NodeStateReady
			n.Description.TLSInfo = swarm.TLSInfo{TrustRoot: string(trust), CertIssuerSubject: leaf.RawIssuer, CertIssuerPublicKey: root.PublicKey()}
			return store.Put(tx, &n)
		})
	}
	for range 3 {
		id, c := f.ask(anyone, f.cluster().JoinTokens.Worker)
		report(id, c.GetCertificate(), f.root.CertPEM())
		ids = append(ids, id)
	}
	f.run(f.Rotate)
	next := newRoot(t)
	f.change(func(c *api.Cluster) {
		cross, err := f.root.CrossSign(next, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		r, err := ca.Begin(&c.RootCA, next, cross, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c.RootCA, c.RootRotationInProgress = *r, true
	})
	renew := func(id string) {
		f.until("asked to renew", func() bool {
			return store.Get[*api.Node](f.store.View(), id).Certificate.State == api.CertificateRotate
		})
		_, c := f.ask(as(t.Context(), id, swarm.NodeRoleWorker), "")
		if _, _, err := f.root.Verify(c.GetCertificate(), time.Now()); err != nil {
			t.Errorf("those who trust the old root don't trust the new certificate: %v", err)
		}
		// The issuer in the description is the next root: it is the second in the bundle.
		trust := ca.Trusted(&f.cluster().RootCA)
		report(id, c.GetCertificate(), append(next.CertPEM()[:len(next.CertPEM()):len(next.CertPEM())], trust...))
	}
	renew(ids[0])
	renew(ids[1])
	if !f.cluster().RootRotationInProgress {
		t.Error("it ended before all had their certificates")
	}
	renew(ids[2])
	old := f.cluster().JoinTokens
	f.until("the rotation ends", func() bool { return !f.cluster().RootRotationInProgress })
	c := f.cluster()
	if string(c.RootCA.Cert) != string(next.CertPEM()) || c.TLSInfo.TrustRoot != string(next.CertPEM()) || c.JoinTokens == old || c.RootCA.Digest != next.Digest() {
		t.Error("the swarm is not the new root's")
	}
}

// until waits for a condition on the store.
func (f *fixture) until(what string, cond func() bool) {
	f.t.Helper()
	_, w := f.store.Watch()
	defer w.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	for !cond() {
		if _, err := w.Next(ctx); err != nil {
			f.t.Fatalf("never: %s: %v", what, err)
		}
	}
}
