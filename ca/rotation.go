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
		root, err := ParseRoot(r.Cert, r.Key)
		if err != nil {
			return nil, err
		}
		root.chain = r.Vouched
		return root, nil
	}
	root, err := ParseRoot(r.NextCert, r.NextKey)
	if err != nil {
		return nil, err
	}
	cross, err := parseCerts(r.CrossSigned)
	if err != nil || len(cross) != 1 {
		return nil, api.Errorf(api.Internal, "the cross-signed root CA is malformed: %w", err)
	}
	root.chain, root.until = slices.Concat(r.CrossSigned, r.Vouched), earliest(root.until, cross[0].NotAfter)
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
	n.NextCert, n.NextKey, n.CrossSigned, n.Begun = next.CertPEM(), key, crossSigned, now.UTC()
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

// Remembered is how many roots back leaves carry what it takes to verify them: a
// node that was away for that many rotations still knows the managers.
const Remembered = 3

// Finish returns the roots after the rotation: the next one is the present one.
func Finish(r *api.RootCA) (*api.RootCA, error) {
	root, err := ParseRoot(r.NextCert, nil)
	if err != nil {
		return nil, err
	}
	vouched, err := parseCerts(slices.Concat(r.CrossSigned, r.Vouched))
	if err != nil {
		return nil, api.Errorf(api.Internal, "the cross-signed root CAs are malformed: %w", err)
	}
	n := &api.RootCA{Cert: r.NextCert, Key: r.NextKey, Digest: root.Digest(), LastForced: r.LastForced}
	for _, c := range vouched[:min(len(vouched), Remembered)] {
		n.Vouched = append(n.Vouched, encodeCert(c.Raw)...)
	}
	return n, nil
}
