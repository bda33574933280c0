package ca

import (
	"bytes"
	"crypto/x509"
	"net/url"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

const (
	// minRootLife is how long a root that users bring must still be valid.
	minRootLife    = 365 * 24 * time.Hour
	maxExternalCAs = 16
)

// Change is what a new configuration asks of a swarm's roots.
type Change struct {
	// Root is the roots as they are to be, when Next is nil.
	Root *api.RootCA
	// Next is the root to Begin a rotation to; without key when an external CA
	// has it. Nil: none begins.
	Next *Root
	// External says that a node certificate can then be had only from an external
	// CA: one for Desired(Root), or for Next, must answer.
	External bool
}

// Settle decides what a configuration asks for. Pure but for the new root's key,
// which it makes when the configuration only demands some other root.
//
// The rules are Docker's: a certificate that is given is the root to come, or
// with the present one's a change of its key, which gives a rotation up; without
// one a changed ForceRotate demands a new root.
func Settle(old *api.RootCA, c *swarm.CAConfig, now time.Time) (Change, error) {
	if err := CheckExternal(c.ExternalCAs); err != nil {
		return Change{}, err
	}
	r := *old
	r.LastForced = c.ForceRotate
	if c.SigningCACert == "" {
		if c.SigningCAKey != "" {
			return Change{}, api.Errorf(api.Invalid, "if a signing CA key is provided, the signing CA cert must also be provided")
		}
		if c.ForceRotate != old.LastForced {
			next, err := NewRoot(now)
			return Change{Root: &r, Next: next}, err
		}
		return Change{Root: &r, External: len(keyOf(&r)) == 0}, nil
	}
	next, err := parseGiven(c, now)
	if err != nil {
		return Change{}, err
	}
	external := !next.CanSign()
	key, err := next.KeyPEM()
	if err != nil {
		return Change{}, err
	}
	switch {
	case bytes.Equal(next.CertPEM(), old.Cert):
		r.Key = key
		r.NextCert, r.NextKey, r.CrossSigned, r.Begun = nil, nil, nil, time.Time{}
		return Change{Root: &r, External: external}, nil
	case bytes.Equal(next.CertPEM(), old.NextCert):
		r.NextKey = key
		return Change{Root: &r, External: external}, nil
	}
	return Change{Root: &r, Next: next, External: external}, nil
}

func keyOf(r *api.RootCA) []byte {
	if Rotating(r) {
		return r.NextKey
	}
	return r.Key
}

// parseGiven reads the root that a user brings.
func parseGiven(c *swarm.CAConfig, now time.Time) (*Root, error) {
	certs, err := parseAuthorities([]byte(c.SigningCACert))
	if err != nil {
		return nil, err
	}
	if len(certs) > 1 {
		return nil, api.Errorf(api.Invalid, "the desired CA certificate cannot contain multiple certificates")
	}
	cert := certs[0]
	switch {
	case cert.CheckSignatureFrom(cert) != nil:
		return nil, api.Errorf(api.Invalid, "the desired CA certificate is not self-signed: only a root can be trusted")
	case now.Before(cert.NotBefore):
		return nil, api.Errorf(api.Invalid, "the desired CA certificate is not valid before %s", cert.NotBefore.Format(time.RFC3339))
	case cert.NotAfter.Before(now.Add(minRootLife)):
		return nil, api.Errorf(api.Invalid, "CA certificate expires too soon: on %s, within a year", cert.NotAfter.Format(time.RFC3339))
	}
	switch cert.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default: // Docker's nodes would not take it
		return nil, api.Errorf(api.Invalid, "the desired CA certificate: unsupported signature algorithm: %s", cert.SignatureAlgorithm)
	}
	if err := checkKey(cert.PublicKey); err != nil {
		return nil, api.Errorf(api.Invalid, "the desired CA certificate: %w", err)
	}
	return ParseRoot(Normalize([]byte(c.SigningCACert)), []byte(c.SigningCAKey))
}

// Normalize returns the certificates of the PEM without anything between them,
// so that equal ones compare equal. What is malformed is left out.
func Normalize(certPEM []byte) []byte {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil
	}
	var b []byte
	for _, c := range certs {
		b = append(b, encodeCert(c.Raw)...)
	}
	return b
}

// CheckExternal says what is wrong with a list of external CAs; Invalid.
func CheckExternal(list []*swarm.ExternalCA) error {
	if len(list) > maxExternalCAs {
		return api.Errorf(api.Invalid, "%d external CAs, at most %d are accepted", len(list), maxExternalCAs)
	}
	for _, e := range list {
		if e == nil || e.Protocol != swarm.ExternalCAProtocolCFSSL {
			return api.Errorf(api.Invalid, "external CA: only the protocol cfssl is known")
		}
		u, err := url.Parse(e.URL)
		if err != nil {
			return api.Errorf(api.Invalid, "external CA: %w", err)
		}
		if u.Scheme != "https" || u.Host == "" {
			return api.Errorf(api.Invalid, "external CA: invalid url %q: it must be like https://HOST/PATH", e.URL)
		}
		if e.CACert != "" {
			if _, err := parseAuthorities([]byte(e.CACert)); err != nil {
				return api.Errorf(api.Invalid, "external CA %s: %w", e.URL, err)
			}
		}
	}
	return nil
}

// External returns the external CAs that sign for the root with the certificate
// rootPEM. One that names no root is for current, the swarm's present one.
func External(list []*swarm.ExternalCA, rootPEM, current []byte) []string {
	want := Normalize(rootPEM)
	var urls []string
	for _, e := range list {
		of := []byte(e.CACert)
		if len(of) == 0 {
			of = current
		}
		if e.Protocol == swarm.ExternalCAProtocolCFSSL && bytes.Equal(Normalize(of), want) {
			urls = append(urls, e.URL)
		}
	}
	return urls
}
