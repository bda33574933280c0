package ca_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

// What is accepted as a root can be used as one.
func FuzzParseRoot(f *testing.F) {
	r := root(f)
	key, _ := r.KeyPEM()
	f.Add(r.CertPEM(), key)
	f.Add(append(bytes.Clone(r.CertPEM()), root(f).CertPEM()...), []byte{})
	f.Add(issue(f, r, swarm.NodeRoleManager).Cert, []byte{})
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		r, err := ca.ParseRoot(cert, key)
		if err != nil {
			if !api.Is(err, api.Invalid) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if r.CanSign() {
			_, csr, _ := ca.NewRequest()
			if _, err := r.Issue(csr, ca.Identity{NodeID: "n", Cluster: "c"}, time.Hour, now()); err != nil && api.ClassOf(err) != api.Internal {
				t.Error(err)
			}
		}
		if n := ca.Normalize(cert); !bytes.Equal(ca.Normalize(n), n) || len(n) == 0 {
			t.Error("Normalize is not idempotent")
		}
	})
}

// No certificate that is made up is a node's.
func FuzzVerify(f *testing.F) {
	r := root(f)
	k := issue(f, r, swarm.NodeRoleManager)
	f.Add(k.Cert)
	f.Add(append(bytes.Clone(k.Cert), r.CertPEM()...))
	f.Add(issue(f, root(f), swarm.NodeRoleWorker).Cert)
	f.Fuzz(func(t *testing.T, cert []byte) {
		leaf, id, err := r.Verify(cert, now())
		if err != nil {
			if !api.Is(err, api.Invalid) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if id != k.Identity() || !leaf.Equal(k.Leaf()) {
			t.Errorf("%+v was never issued", id)
		}
	})
}

// A request gives its key and nothing else.
func FuzzRequest(f *testing.F) {
	r := root(f)
	_, csr, _ := ca.NewRequest()
	f.Add(csr)
	block, _ := pem.Decode(csr)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: block.Bytes}))
	f.Add(r.CertPEM())
	f.Fuzz(func(t *testing.T, csr []byte) {
		id := ca.Identity{NodeID: "node1", Role: swarm.NodeRoleWorker, Cluster: "c"}
		cert, err := r.Issue(csr, id, time.Hour, now())
		if err != nil {
			return
		}
		leaf, got, err := r.Verify(cert, now())
		if err != nil || got != id || leaf.IsCA || len(leaf.DNSNames) != 2 || len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.URIs) > 0 {
			t.Errorf("%+v %v from a request: %v", got, leaf, err)
		}
	})
}

// A node's key file, however damaged, is refused without a panic, and opens only
// to what was written.
func FuzzKeyFile(f *testing.F) {
	r := root(f)
	k := issue(f, r, swarm.NodeRoleManager).WithLogKeys([][]byte{bytes.Repeat([]byte{7}, 32)})
	kek := bytes.Repeat([]byte{1}, 32)
	files := ca.Files{Dir: f.TempDir()}
	name := filepath.Join(files.Dir, "swarm-node.key")
	for _, kek := range [][]byte{nil, kek} {
		if err := files.Save(k, kek); err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := files.Load(kek, now()); err == nil && got.Identity() != k.Identity() {
			t.Errorf("%+v", got.Identity())
		}
	})
}

func FuzzCFSSL(f *testing.F) {
	r := root(f)
	key, csr, _ := ca.NewRequest()
	_ = key
	id := ca.Identity{NodeID: "node1", Role: swarm.NodeRoleManager, Cluster: "c"}
	f.Add([]byte(`{"success":true,"result":{"certificate":"x"},"errors":[],"messages":[]}`))
	f.Add([]byte(`{"success":false,"result":null,"errors":[{"code":5100,"message":"no"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		cert, err := ca.CFSSLCertificate(body)
		if err != nil {
			return
		}
		if _, err := r.Accept(cert, csr, id, now()); err == nil {
			t.Error("a certificate that nobody issued is accepted")
		}
	})
}
