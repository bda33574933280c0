package issuer_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/ca/catest"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// A rotation signs for nodes that are away, in the role that they have now, by
// itself or by an external CA.
func TestRotateSignsForAbsentNodes(t *testing.T) {
	for _, outside := range []bool{false, true} {
		t.Run(map[bool]string{false: "own root", true: "external CA"}[outside], func(t *testing.T) {
			f := setUp(t)
			anyone := as(t.Context(), "", "")
			join := func(token string, after func(*api.Node)) string {
				id, _ := f.ask(anyone, token)
				f.write(func(tx *store.Tx) error {
					n := *store.Get[*api.Node](tx, id)
					n.Status.State, n.DownSince = swarm.NodeStateDown, time.Now().Add(-time.Hour)
					n.Session.ID = "s"
					after(&n)
					return store.Put(tx, &n)
				})
				return id
			}
			as := func(r swarm.NodeRole) func(*api.Node) { return func(n *api.Node) { n.Role, n.Spec.Role = r, r } }
			tokens := f.cluster().JoinTokens
			want := map[string]swarm.NodeRole{
				join(tokens.Worker, as(swarm.NodeRoleWorker)):   swarm.NodeRoleWorker,
				join(tokens.Manager, as(swarm.NodeRoleManager)): swarm.NodeRoleManager,
				join(tokens.Manager, as(swarm.NodeRoleWorker)):  swarm.NodeRoleWorker, // demoted, or left behind
				join(tokens.Worker, as(swarm.NodeRoleManager)):  swarm.NodeRoleWorker, // promoted; it renews when it is back
			}
			next := newRoot(t)
			f.change(func(c *api.Cluster) {
				cross, err := f.root.CrossSign(next, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				r, err := ca.Begin(&c.RootCA, next, cross, time.Now().Add(-time.Minute))
				if err != nil {
					t.Fatal(err)
				}
				if outside {
					o := catest.Serve(t, next, f.root)
					r.NextKey = nil
					c.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{{Protocol: swarm.ExternalCAProtocolCFSSL, URL: o.URL, CACert: string(next.CertPEM())}}
				}
				c.RootCA, c.RootRotationInProgress = *r, true
			})
			f.run(f.Run)
			f.run(f.Rotate)
			f.until("the rotation ends", func() bool { return !f.cluster().RootRotationInProgress })
			for id, role := range want {
				n := store.Get[*api.Node](f.store.View(), id)
				if got := n.Description.TLSInfo; got.TrustRoot != f.cluster().TLSInfo.TrustRoot || string(got.CertIssuerPublicKey) != string(next.PublicKey()) {
					t.Errorf("node %s is not shown with the new root", id)
				}
				s, err := f.NodeCertificateStatus(anyone, &swarmpb.NodeCertificateStatusRequest{NodeId: id})
				if err != nil {
					t.Fatal(err)
				}
				for _, root := range []*ca.Root{f.root, next} {
					if _, who, err := root.Verify(s.GetCertificate().GetCertificate(), time.Now()); err != nil || who.NodeID != id || who.Role != role {
						t.Errorf("what waits for a %s: %+v, %v", role, who, err)
					}
				}
			}
			if n := store.Count[*api.Node](f.store.View()); n != len(want) {
				t.Errorf("%d nodes", n)
			}
		})
	}
}
