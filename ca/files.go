package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/atomicwriter"

	"github.com/legion-swarm/legion/api"
)

// The files in a certificates folder.
const (
	certFile = "swarm-node.crt"
	keyFile  = "swarm-node.key"
	rootFile = "swarm-root-ca.crt"
)

// ErrLocked says that the node's key is encrypted and that the given key does
// not open it.
var ErrLocked = errors.New("swarm is encrypted and needs to be unlocked")

// Keys is a node's identity: its key, certificate and the root it trusts.
// Immutable.
type Keys struct {
	Root *Root
	Cert []byte // PEM, the leaf first
	Key  []byte // PEM, in the clear

	logKeys [][]byte
	leaf    *x509.Certificate
	issuer  *x509.Certificate
	id      Identity
}

const (
	logKeyType = "LEGION LOG KEY"
	maxLogKeys = 8
)

// NewKeys checks that the parts belong together: the leaf is the root's and the
// key is the leaf's. Keys of the log may follow the key. An expired leaf is
// accepted here; now is only for its beginning.
func NewKeys(root *Root, certPEM, keyPEM []byte, now time.Time) (*Keys, error) {
	leaf, _, err := parseChain(certPEM)
	if err != nil {
		return nil, err
	}
	if leaf.NotAfter.Before(now) {
		now = leaf.NotAfter
	}
	leaf, issuer, id, err := root.verify(certPEM, now)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "node key: %w", err)
	}
	if !sameKey(key.Public(), leaf.PublicKey) {
		return nil, api.Errorf(api.Invalid, "node key: it does not belong to the node's certificate")
	}
	own, logKeys, err := splitKeys(keyPEM)
	if err != nil {
		return nil, err
	}
	return &Keys{Root: root, Cert: certPEM, Key: own, logKeys: logKeys, leaf: leaf, issuer: issuer, id: id}, nil
}

// splitKeys parts a key from the keys of the log that follow it.
func splitKeys(keyPEM []byte) (own []byte, logKeys [][]byte, err error) {
	block, rest := pem.Decode(keyPEM)
	own = pem.EncodeToMemory(block)
	for {
		if block, rest = pem.Decode(rest); block == nil {
			return own, logKeys, nil
		}
		if block.Type != logKeyType || len(logKeys) == maxLogKeys {
			return nil, nil, api.Errorf(api.Invalid, "node key: unexpected PEM block %q after it", block.Type)
		}
		logKeys = append(logKeys, block.Bytes)
	}
}

// LogKeys returns the keys that a manager's log is encrypted with, the present
// one first; empty when it is in the clear.
func (k *Keys) LogKeys() [][]byte { return k.logKeys }

// WithLogKeys returns the keys with others for the log.
func (k *Keys) WithLogKeys(logKeys [][]byte) *Keys {
	n := *k
	n.logKeys = logKeys
	return &n
}

// private is all that is secret, in PEM.
func (k *Keys) private() []byte {
	b := bytes.Clone(k.Key)
	for _, l := range k.logKeys {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: logKeyType, Bytes: l})...)
	}
	return b
}

// WithRoot returns the keys with another root, of which the certificate must be.
func (k *Keys) WithRoot(root *Root, now time.Time) (*Keys, error) {
	return NewKeys(root, k.Cert, k.private(), now)
}

// Waiting returns the keys with a certificate that the managers signed while this
// node was away: for the same node and key, of a root that this node's root vouches
// for. Nil when the certificate is not newer than the node's own; Conflict when it
// is not for this node's key.
func (k *Keys) Waiting(certPEM []byte, now time.Time) (*Keys, error) {
	leaf, _, err := parseChain(certPEM)
	if err != nil {
		return nil, err
	}
	if !leaf.NotBefore.After(k.leaf.NotBefore) {
		return nil, nil
	}
	if !sameKey(leaf.PublicKey, k.leaf.PublicKey) {
		return nil, api.Errorf(api.Conflict, "the certificate that waits for this node is not for the key that it has")
	}
	n, err := NewKeys(k.Root, certPEM, k.private(), now)
	switch {
	case err != nil:
		return nil, err
	case n.id.NodeID != k.id.NodeID || n.id.Cluster != k.id.Cluster:
		return nil, api.Errorf(api.PermissionDenied, "the certificate is for node %s of swarm %s, not for this node", n.id.NodeID, n.id.Cluster)
	case leaf.NotAfter.Before(now):
		return nil, api.Errorf(api.Invalid, "the certificate that waited for this node has expired on %s", leaf.NotAfter.Format(time.RFC3339))
	}
	return n, nil
}

// Identity returns who the certificate says the node is.
func (k *Keys) Identity() Identity { return k.id }

// Leaf returns the node's certificate.
func (k *Keys) Leaf() *x509.Certificate { return k.leaf }

// Issuer returns the raw subject and public key of the authority that signed the
// node's certificate, as Docker's API shows them.
func (k *Keys) Issuer() (subject, publicKey []byte) {
	return k.issuer.RawSubject, k.issuer.RawSubjectPublicKeyInfo
}

// TLS returns certificate and key for crypto/tls.
func (k *Keys) TLS() (tls.Certificate, error) { return tls.X509KeyPair(k.Cert, k.Key) }

// Files keeps a node's Keys in a folder (mode 0700, the key 0600). Writes are
// atomic file by file, the key before the certificate. Not for concurrent use.
type Files struct {
	// Dir is the folder, as <data-root>/swarm/certificates.
	Dir string
}

// Load reads the keys. kek opens an encrypted key and may be nil. The error
// wraps fs.ErrNotExist when there are none, ErrLocked when kek does not open
// the key; otherwise it names the file at fault.
func (f Files) Load(kek []byte, now time.Time) (*Keys, error) {
	rootPEM, err := os.ReadFile(filepath.Join(f.Dir, rootFile))
	if err != nil {
		return nil, err
	}
	root, err := ParseRoot(rootPEM, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(f.Dir, rootFile), err)
	}
	cert, err := os.ReadFile(filepath.Join(f.Dir, certFile))
	if err != nil {
		return nil, err
	}
	sealed, err := os.ReadFile(filepath.Join(f.Dir, keyFile))
	if err != nil {
		return nil, err
	}
	key, err := open(sealed, kek)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(f.Dir, keyFile), err)
	}
	keys, err := NewKeys(root, cert, key, now)
	if err != nil {
		return f.loadPending(root, cert, kek, now, fmt.Errorf("%s: %w", f.Dir, err))
	}
	if err := f.dropOld(); err != nil {
		return nil, err
	}
	return keys, nil
}

// dropOld removes the key of before, which may be less well encrypted.
func (f Files) dropOld() error {
	err := os.Remove(filepath.Join(f.Dir, keyFile+".old"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// loadPending helps after a crash between the writes of key and certificate: the
// key of before is still there under another name.
func (f Files) loadPending(root *Root, cert, kek []byte, now time.Time, cause error) (*Keys, error) {
	sealed, err := os.ReadFile(filepath.Join(f.Dir, keyFile+".old"))
	if err != nil {
		return nil, cause
	}
	key, err := open(sealed, kek)
	if err != nil {
		return nil, cause
	}
	keys, err := NewKeys(root, cert, key, now)
	if err != nil {
		return nil, cause
	}
	return keys, f.Save(keys, kek) // so that the next change finds things in order
}

// Save writes the keys, the private one encrypted with kek unless that is empty.
func (f Files) Save(k *Keys, kek []byte) error {
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return err
	}
	sealed, err := seal(k.private(), kek)
	if err != nil {
		return err
	}
	if err := f.keepOld(k.Cert); err != nil {
		return err
	}
	for _, w := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{rootFile, k.Root.CertPEM(), 0o644},
		{keyFile, sealed, 0o600},
		{certFile, k.Cert, 0o644},
	} {
		if err := write(filepath.Join(f.Dir, w.name), w.data, w.mode); err != nil {
			return err
		}
	}
	return f.dropOld()
}

// keepOld keeps the key beside while both key and certificate change.
func (f Files) keepOld(cert []byte) error {
	if have, err := os.ReadFile(filepath.Join(f.Dir, certFile)); err != nil || bytes.Equal(have, cert) {
		return nil //nolint:nilerr // without certificate there is no identity to keep
	}
	old, err := os.ReadFile(filepath.Join(f.Dir, keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return write(filepath.Join(f.Dir, keyFile+".old"), old, 0o600)
}

// write is durable when it returns: a log may be encrypted with the key next.
func write(path string, data []byte, mode os.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := atomicwriter.WriteFile(path, data, mode); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
