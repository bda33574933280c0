package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// A rotation replaces a swarm's root. Its states are those of api.RootCA: without
// NextCert none is under way; with it, leaves are signed by the next root and
// carry CrossSigned, the next root as the present one vouches for it, and nodes
// trust both. When every node has a certificate of the next root and trusts it, it
// takes the present one's place.

// CrossSign returns the next root's certificate (PEM) as signed by this one:
// nodes that trust only this one accept its leaves. Unavailable without key.
func (r *Root) CrossSign(next *Root, now time.Time) ([]byte, error) {
	if r.key == nil {
		return nil, api.Errorf(api.Unavailable, "this manager does not have the root CA's key")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	cert := next.certs[0]
	template := &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            cert.RawSubject,
		NotBefore:             now.Add(-Backdate),
		NotAfter:              earliest(cert.NotAfter, r.until),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          cert.SubjectKeyId,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.certs[0], cert.PublicKey, r.key)
	if err != nil {
		return nil, err
	}
	return encodeCert(der), nil
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Rotating reports whether a rotation is under way.
func Rotating(r *api.RootCA) bool { return len(r.NextCert) > 0 }

// Desired returns the certificate (PEM) that nodes' certificates are to be of.
func Desired(r *api.RootCA) []byte {
	if Rotating(r) {
		return r.NextCert
	}
	return r.Cert
}

// Trusted returns the certificates (PEM) that nodes are to trust. Those who join
// get only r.Cert, by which their token can check it.
func Trusted(r *api.RootCA) []byte {
	if Rotating(r) {
		return slices.Concat(r.Cert, r.NextCert)
	}
	return r.Cert
}

// Signer returns the root that signs nodes' certificates. It has no key when only
// an external CA can.
func Signer(r *api.RootCA) (*Root, error) {
	if !Rotating(r) {
		return ParseRoot(r.Cert, r.Key)
	}
	root, err := ParseRoot(r.NextCert, r.NextKey)
	if err != nil {
		return nil, err
	}
	cross, err := parseCerts(r.CrossSigned)
	if err != nil || len(cross) != 1 {
		return nil, api.Errorf(api.Internal, "the cross-signed root CA is malformed: %w", err)
	}
	root.chain, root.until = r.CrossSigned, earliest(root.until, cross[0].NotAfter)
	return root, nil
}

// TLSInfo describes the roots as Docker's API shows them: what is trusted now,
// and the issuer that nodes' certificates are to have.
func TLSInfo(r *api.RootCA) (swarm.TLSInfo, error) {
	root, err := ParseRoot(Desired(r), nil)
	if err != nil {
		return swarm.TLSInfo{}, err
	}
	return swarm.TLSInfo{TrustRoot: string(r.Cert), CertIssuerSubject: root.Subject(), CertIssuerPublicKey: root.PublicKey()}, nil
}

// Begin returns the roots with a rotation to next under way. crossSigned is next
// as r.Cert's key signed it; it is checked. A rotation that was under way is
// given up for it.
func Begin(r *api.RootCA, next *Root, crossSigned []byte, now time.Time) (*api.RootCA, error) {
	if err := checkCross(r, next, crossSigned, now); err != nil {
		return nil, err
	}
	key, err := next.KeyPEM()
	if err != nil {
		return nil, err
	}
	n := *r
	n.NextCert, n.NextKey, n.CrossSigned = next.CertPEM(), key, crossSigned
	return &n, nil
}

func checkCross(r *api.RootCA, next *Root, crossSigned []byte, now time.Time) error {
	old, err := ParseRoot(r.Cert, nil)
	if err != nil {
		return err
	}
	cross, err := parseCerts(crossSigned)
	if err != nil || len(cross) != 1 {
		return api.Errorf(api.Invalid, "cross-signed root CA: one PEM certificate is needed")
	}
	c := cross[0]
	if !bytes.Equal(c.RawSubjectPublicKeyInfo, next.PublicKey()) || !bytes.Equal(c.RawSubject, next.Subject()) || !c.IsCA {
		return api.Errorf(api.Invalid, "cross-signed root CA: it is not the new root's key and name as a certificate authority")
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: old.pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return api.Errorf(api.Invalid, "cross-signed root CA: %w", err)
	}
	return nil
}

// Finish returns the roots after the rotation: the next one is the present one.
func Finish(r *api.RootCA) (*api.RootCA, error) {
	root, err := ParseRoot(r.NextCert, nil)
	if err != nil {
		return nil, err
	}
	return &api.RootCA{Cert: r.NextCert, Key: r.NextKey, Digest: root.Digest(), LastForced: r.LastForced}, nil
}

// Step is what a rotation does next.
type Step struct {
	// Renew are the nodes, by id, that are to be asked for a new request.
	Renew []string
	// Left is how many nodes are not known to have a certificate of the desired
	// root and to trust it.
	Left int
	// Done says that the rotation can be finished.
	Done bool
	// Again is when to look again though nothing changed; zero: no need.
	Again time.Time
}

// Limits of Next.
const (
	// renewWindow is how many connected nodes renew at once.
	renewWindow = 128
	// reportTime is how long a node has to say that it uses its new certificate,
	// before it is asked again.
	reportTime = time.Minute
	// maxBundles bounds what is remembered of the texts that nodes say they trust.
	maxBundles = 1024
)

// Next plans a rotation's next step from what the nodes' objects say. It also
// finds work without rotation: nodes left with a certificate of a root that was
// given up. A node's certificate is the one that it says it uses.
func Next(r *api.RootCA, nodes []*api.Node, now time.Time) (Step, error) {
	desired, err := ParseRoot(Desired(r), nil)
	if err != nil {
		return Step{}, err
	}
	var s Step
	busy := 0
	var idle []*api.Node
	trusted := map[string]bool{} // by bundle; there are few different ones
	for _, n := range nodes {
		if uses(desired, n) {
			bundle := n.Description.TLSInfo.TrustRoot
			ok, seen := trusted[bundle]
			if !seen {
				ok = trusts(desired, bundle)
			}
			if !seen && len(trusted) < maxBundles {
				trusted[bundle] = ok
			}
			if Rotating(r) && !ok {
				s.Left++ // it has been told, and will say so
			}
			continue
		}
		issued := issuedBy(r, desired, n)
		s.Left++
		switch {
		case n.Certificate.State == api.CertificateRotate || n.Certificate.State == api.CertificatePending || n.Certificate.State == api.CertificateRenew:
			busy += connected(n)
		case issued != nil && now.Before(issued.NotBefore.Add(Backdate+reportTime)):
			busy += connected(n)
			if again := issued.NotBefore.Add(Backdate + reportTime); s.Again.IsZero() || again.Before(s.Again) {
				s.Again = again
			}
		case issued != nil && connected(n) == 0: // it will say so when it is back
		default:
			idle = append(idle, n)
		}
	}
	for _, n := range idle {
		if c := connected(n); c == 0 || busy < renewWindow {
			busy += c
			s.Renew = append(s.Renew, n.ID)
		}
	}
	s.Done = Rotating(r) && s.Left == 0
	return s, nil
}

func connected(n *api.Node) int {
	if n.Status.State == swarm.NodeStateReady {
		return 1
	}
	return 0
}

// issuedBy returns the certificate that the node was last issued, if it is the
// root's.
func issuedBy(r *api.RootCA, root *Root, n *api.Node) *x509.Certificate {
	if Rotating(r) && !bytes.Contains(n.Certificate.Cert, bytes.TrimSpace(r.CrossSigned)) {
		return nil // most are not, and signatures take time
	}
	leaf, rest, err := parseChain(n.Certificate.Cert)
	if err != nil {
		return nil
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: root.pool, Intermediates: rest, CurrentTime: leaf.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil
	}
	return leaf
}

// uses reports whether the node says that its certificate is of the root.
func uses(root *Root, n *api.Node) bool {
	tls := &n.Description.TLSInfo
	return bytes.Equal(tls.CertIssuerPublicKey, root.PublicKey()) && bytes.Equal(tls.CertIssuerSubject, root.Subject())
}

// trusts reports whether a node that trusts the bundle trusts the root: one that
// does not would be lost when others have nothing else to show.
func trusts(root *Root, bundle string) bool {
	certs, err := parseAuthorities([]byte(bundle))
	return err == nil && slices.ContainsFunc(certs, root.certs[0].Equal)
}
