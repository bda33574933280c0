package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"time"

	"github.com/legion-swarm/legion/api"
)

const (
	rootName     = "swarm-ca"
	rootLifetime = 20 * 365 * 24 * time.Hour
	// Backdate is how far before now a certificate begins, so that nodes whose
	// clocks are behind accept it.
	Backdate = time.Hour

	serialBits = 127

	certificateType = "CERTIFICATE"
)

// Root is what a node trusts, and with a key what signs node certificates. It is
// one certificate, and while a rotation is under way several: the one to come is
// the last. Immutable and safe for concurrent use.
type Root struct {
	certs []*x509.Certificate // never empty; the first is the key's
	pem   []byte
	key   crypto.Signer // nil: can't sign
	chain []byte        // PEM that leaves carry, for those who don't trust certs[0] yet
	until time.Time     // leaves end by then
	pool  *x509.CertPool
}

// NewRoot makes a root, valid from now.
func NewRoot(now time.Time) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: rootName},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return newRoot([]*x509.Certificate{cert}, encodeCert(der), key), nil
}

func newRoot(certs []*x509.Certificate, certPEM []byte, key crypto.Signer) *Root {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return &Root{certs: certs, pem: certPEM, key: key, until: certs[0].NotAfter, pool: pool}
}

// Limits on what a root's PEM may hold.
const (
	maxBundle      = 64 << 10
	maxBundleCerts = 4
)

// ParseRoot reads a root from PEM: one certificate or several. Without key the
// root only verifies. Invalid when either is malformed, when key and first
// certificate don't belong together, or when a certificate is no authority.
func ParseRoot(certPEM, keyPEM []byte) (*Root, error) {
	certs, err := parseAuthorities(certPEM)
	if err != nil {
		return nil, err
	}
	if len(keyPEM) == 0 {
		return newRoot(certs, certPEM, nil), nil
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "root CA: %w", err)
	}
	if !sameKey(key.Public(), certs[0].PublicKey) {
		return nil, api.Errorf(api.Invalid, "root CA: key and certificate do not belong together")
	}
	return newRoot(certs, certPEM, key), nil
}

func parseAuthorities(certPEM []byte) ([]*x509.Certificate, error) {
	if len(certPEM) > maxBundle {
		return nil, api.Errorf(api.Invalid, "root CA: %d bytes of certificates, at most %d are accepted", len(certPEM), maxBundle)
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "root CA: %w", err)
	}
	if len(certs) == 0 || len(certs) > maxBundleCerts {
		return nil, api.Errorf(api.Invalid, "root CA: %d PEM certificates, 1 to %d are accepted", len(certs), maxBundleCerts)
	}
	for _, c := range certs {
		if !c.IsCA {
			return nil, api.Errorf(api.Invalid, "root CA: certificate of %q is not a certificate authority", c.Subject.CommonName)
		}
	}
	return certs, nil
}

// parseCerts reads all certificates in PEM; blocks of another type are an error.
func parseCerts(certPEM []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, certPEM = pem.Decode(certPEM); block == nil {
			return certs, nil
		}
		if block.Type != certificateType {
			return nil, errors.New("PEM block " + block.Type + " is no certificate")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
}

// CertPEM returns the root's certificates. The caller must not change them.
func (r *Root) CertPEM() []byte { return r.pem }

// KeyPEM returns the root's key in PKCS #8, and nil for a root without key.
func (r *Root) KeyPEM() ([]byte, error) {
	if r.key == nil {
		return nil, nil
	}
	return encodeKey(r.key)
}

// CanSign reports whether the root has its key.
func (r *Root) CanSign() bool { return r.key != nil }

// Digest returns the hexadecimal SHA-256 of the certificate's PEM, as join
// tokens carry it.
func (r *Root) Digest() string {
	sum := sha256.Sum256(r.pem)
	return hex.EncodeToString(sum[:])
}

// Pool returns the pool that verifies leaves of this root.
func (r *Root) Pool() *x509.CertPool { return r.pool }

// Subject and PublicKey return the raw subject and public key of the root's first
// certificate, as Docker's API shows them.
func (r *Root) Subject() []byte { return r.certs[0].RawSubject }

// PublicKey returns the root's raw public key.
func (r *Root) PublicKey() []byte { return r.certs[0].RawSubjectPublicKeyInfo }

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseKey reads a key as openssl writes it: PKCS #8, SEC 1 (with the curve before
// it, or without) or PKCS #1.
func parseKey(keyPEM []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(keyPEM)
	if block != nil && block.Type == "EC PARAMETERS" {
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("no PEM key")
	}
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return nil, errors.New("the private key is encrypted: give it decrypted (openssl pkey -in FILE)")
	case block.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case block.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, errors.New("PEM block " + block.Type + " is no private key")
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("key cannot sign")
	}
	return signer, nil
}
