package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Names that stand in certificates, and by which clients know what they talk to.
const (
	ManagerOU = "swarm-manager"
	WorkerOU  = "swarm-worker"
	// AuthorityName is a further name of managers' certificates: that of whoever
	// answers requests for certificates.
	AuthorityName = rootName
)

const (
	// DefaultExpiry is how long node certificates are valid when the cluster's
	// spec does not say.
	DefaultExpiry = 90 * 24 * time.Hour
	// MinExpiry is the shortest that a cluster may ask for.
	MinExpiry = time.Hour

	requestType = "CERTIFICATE REQUEST"
	maxRequest  = 16 << 10
	minRSABits  = 2048
)

// Identity is who a certificate says its holder is.
type Identity struct {
	NodeID  string         // CN
	Role    swarm.NodeRole // OU
	Cluster string         // O, the cluster's id
}

// OU returns the organizational unit that stands for the role.
func OU(r swarm.NodeRole) string {
	if r == swarm.NodeRoleManager {
		return ManagerOU
	}
	return WorkerOU
}

// IdentityOf reads the identity in a verified certificate. False when its names
// are not those of a node.
func IdentityOf(cert *x509.Certificate) (Identity, bool) {
	s := cert.Subject
	if s.CommonName == "" || len(s.Organization) != 1 || len(s.OrganizationalUnit) != 1 {
		return Identity{}, false
	}
	id := Identity{NodeID: s.CommonName, Cluster: s.Organization[0]}
	switch s.OrganizationalUnit[0] {
	case ManagerOU:
		id.Role = swarm.NodeRoleManager
	case WorkerOU:
		id.Role = swarm.NodeRoleWorker
	default:
		return Identity{}, false
	}
	return id, id.Cluster != ""
}

// NewRequest makes a key and a request for a certificate of it, both PEM. Names
// are the manager's to give: the request has none that count.
func NewRequest() (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, err
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: requestType, Bytes: der}), nil
}

// CheckRequest says what is wrong with a request for a certificate; Invalid.
func CheckRequest(csrPEM []byte) error {
	_, err := parseRequest(csrPEM)
	return err
}

func parseRequest(csrPEM []byte) (*x509.CertificateRequest, error) {
	if len(csrPEM) > maxRequest {
		return nil, api.Errorf(api.Invalid, "certificate request: %d bytes, at most %d are accepted", len(csrPEM), maxRequest)
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil || (block.Type != requestType && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, api.Errorf(api.Invalid, "certificate request: no PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, api.Errorf(api.Invalid, "certificate request: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, api.Errorf(api.Invalid, "certificate request: %w", err)
	}
	return csr, nil
}

// checkKey refuses keys that are weak or of another kind than Docker's.
func checkKey(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return nil
	case *rsa.PublicKey:
		if key.N.BitLen() < minRSABits {
			return fmt.Errorf("RSA key of %d bits, at least %d are needed", key.N.BitLen(), minRSABits)
		}
		return nil
	}
	return fmt.Errorf("key of type %T is not accepted, use ECDSA", key)
}

// Issue signs a request: the key is the request's, all else is given here. It
// returns the leaf in PEM, with what it takes to verify it during a rotation. Unavailable when the root has no key.
func (r *Root) Issue(csrPEM []byte, id Identity, expiry time.Duration, now time.Time) ([]byte, error) {
	if r.key == nil {
		return nil, api.Errorf(api.Unavailable, "this manager does not have the root CA's key")
	}
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	if id.NodeID == "" || id.Cluster == "" {
		return nil, api.Errorf(api.Internal, "certificate without node or cluster id")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	if expiry < MinExpiry {
		expiry = DefaultExpiry
	}
	ou := OU(id.Role)
	names := []string{ou, id.NodeID}
	if id.Role == swarm.NodeRoleManager {
		names = append(names, AuthorityName)
	}
	notAfter := now.Add(expiry)
	if notAfter.After(r.until) {
		notAfter = r.until
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id.NodeID, OrganizationalUnit: []string{ou}, Organization: []string{id.Cluster}},
		DNSNames:              names,
		NotBefore:             now.Add(-Backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.certs[0], csr.PublicKey, r.key)
	if err != nil {
		return nil, err
	}
	return append(encodeCert(der), r.chain...), nil
}

// ParseLeaf reads the first certificate in PEM, without any check.
func ParseLeaf(certPEM []byte) (*x509.Certificate, error) {
	leaf, _, err := parseChain(certPEM)
	return leaf, err
}

// Verify checks that a leaf (PEM, its chain may follow) is of this root, valid
// now, and names a node.
func (r *Root) Verify(certPEM []byte, now time.Time) (*x509.Certificate, Identity, error) {
	leaf, _, id, err := r.verify(certPEM, now)
	return leaf, id, err
}

// verify is Verify that also returns the authority that signed the leaf.
func (r *Root) verify(certPEM []byte, now time.Time) (leaf, issuer *x509.Certificate, id Identity, err error) {
	leaf, rest, err := parseChain(certPEM)
	if err != nil {
		return nil, nil, id, err
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: r.pool, Intermediates: rest, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, nil, id, api.Errorf(api.Invalid, "node certificate: %w", err)
	}
	id, ok := IdentityOf(leaf)
	if !ok || !slices.Contains(leaf.DNSNames, OU(id.Role)) {
		return nil, nil, id, api.Errorf(api.Invalid, "node certificate: its names are not those of a swarm node")
	}
	if len(chains[0]) < 2 { // the leaf itself is trusted
		return nil, nil, id, api.Errorf(api.Invalid, "node certificate: it is the root itself")
	}
	return leaf, chains[0][1], id, nil
}

func parseChain(certPEM []byte) (*x509.Certificate, *x509.CertPool, error) {
	if len(certPEM) > maxBundle {
		return nil, nil, api.Errorf(api.Invalid, "node certificate: %d bytes, at most %d are accepted", len(certPEM), maxBundle)
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, nil, api.Errorf(api.Invalid, "node certificate: %w", err)
	}
	if len(certs) == 0 {
		return nil, nil, api.Errorf(api.Invalid, "node certificate: no PEM certificate")
	}
	pool := x509.NewCertPool()
	for _, c := range certs[1:] {
		pool.AddCert(c)
	}
	return certs[0], pool, nil
}
