package ca_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

func now() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) }

func root(t testing.TB) *ca.Root {
	t.Helper()
	r, err := ca.NewRoot(now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func issue(t testing.TB, r *ca.Root, role swarm.NodeRole) *ca.Keys {
	t.Helper()
	key, csr, err := ca.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := r.Issue(csr, ca.Identity{NodeID: "node1", Role: role, Cluster: "cluster1"}, 24*time.Hour, now())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ca.NewKeys(r, cert, key, now())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestRoot(t *testing.T) {
	r := root(t)
	key, err := r.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ca.ParseRoot(r.CertPEM(), key)
	if err != nil || !again.CanSign() || again.Digest() != r.Digest() {
		t.Errorf("ParseRoot = %v, %v", again, err)
	}
	block, _ := pem.Decode(r.CertPEM())
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.Subject.CommonName != "swarm-ca" || !cert.IsCA || cert.NotAfter.Sub(now()) != 20*365*24*time.Hour {
		t.Errorf("certificate %+v, %v", cert.Subject, err)
	}
	other, _ := root(t).KeyPEM()
	for what, f := range map[string]func() (*ca.Root, error){
		"garbage":       func() (*ca.Root, error) { return ca.ParseRoot([]byte("x"), nil) },
		"another's key": func() (*ca.Root, error) { return ca.ParseRoot(r.CertPEM(), other) },
		"a leaf":        func() (*ca.Root, error) { return ca.ParseRoot(issue(t, r, swarm.NodeRoleWorker).Cert, nil) },
	} {
		if _, err := f(); !api.Is(err, api.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestLeaf(t *testing.T) {
	r := root(t)
	for role, ou := range map[swarm.NodeRole]string{swarm.NodeRoleWorker: "swarm-worker", swarm.NodeRoleManager: "swarm-manager"} {
		k := issue(t, r, role)
		leaf := k.Leaf()
		s := leaf.Subject
		if s.CommonName != "node1" || s.OrganizationalUnit[0] != ou || s.Organization[0] != "cluster1" {
			t.Errorf("subject %v", s)
		}
		if !leaf.NotBefore.Equal(now().Add(-time.Hour)) || !leaf.NotAfter.Equal(now().Add(24*time.Hour)) {
			t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
		}
		if got := k.Identity(); got != (ca.Identity{NodeID: "node1", Role: role, Cluster: "cluster1"}) {
			t.Errorf("identity %+v", got)
		}
		if err := leaf.VerifyHostname("swarm-ca"); (err == nil) != (role == swarm.NodeRoleManager) {
			t.Errorf("%s speaks for the authority: %v", role, err)
		}
	}
	if _, _, err := root(t).Verify(issue(t, r, swarm.NodeRoleWorker).Cert, now()); !api.Is(err, api.Invalid) {
		t.Errorf("another root's leaf: %v", err)
	}
	if _, _, err := r.Verify(issue(t, r, swarm.NodeRoleWorker).Cert, now().Add(25*time.Hour)); !api.Is(err, api.Invalid) {
		t.Errorf("an expired leaf: %v", err)
	}
	readOnly, _ := ca.ParseRoot(r.CertPEM(), nil)
	_, csr, _ := ca.NewRequest()
	if _, err := readOnly.Issue(csr, ca.Identity{NodeID: "n", Cluster: "c"}, 0, now()); !api.Is(err, api.Unavailable) {
		t.Errorf("signing without key: %v", err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), r.CertPEM(), []byte(strings.Repeat("x", 1<<20))} {
		if err := ca.CheckRequest(bad); !api.Is(err, api.Invalid) {
			t.Errorf("request %.20q: %v", bad, err)
		}
	}
}

// A token in Docker's form of a known digest: base 36, padded to 50 digits.
func TestTokenForm(t *testing.T) {
	token := ca.Token{Digest: strings.Repeat("0", 63) + "f", Secret: strings.Repeat("a", 25)}
	want := "SWMTKN-1-" + strings.Repeat("0", 49) + "f-" + strings.Repeat("a", 25)
	if got := token.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	high := ca.Token{Digest: strings.Repeat("f", 64), Secret: strings.Repeat("0", 25)}
	if back, err := ca.ParseToken(high.String()); err != nil || back != high {
		t.Errorf("got %+v, %v", back, err)
	}
}

func TestToken(t *testing.T) {
	r := root(t)
	s := ca.NewToken(r)
	token, err := ca.ParseToken(s)
	if err != nil || token.String() != s || token.Digest != r.Digest() || !token.Trusts(r.CertPEM()) || token.Trusts(root(t).CertPEM()) {
		t.Errorf("token %+v, %v", token, err)
	}
	if !ca.SameToken(s, s) || ca.SameToken(s, ca.NewToken(r)) || ca.SameToken("", "") {
		t.Error("SameToken")
	}
	for _, bad := range []string{
		"", "SWMTKN", "SWMTKN-1--", s + "-", s[1:], strings.ToUpper(s), s + "0",
		"SWMTKN-1-" + strings.Repeat("z", 50) + "-" + strings.Repeat("0", 25),
		"SWMTKN-2-1-" + strings.Repeat("0", 50) + "-" + strings.Repeat("0", 25),
	} {
		if _, err := ca.ParseToken(bad); !api.Is(err, api.Invalid) || strings.Contains(err.Error(), s) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(ca.NewToken(root(f)))
	f.Add("SWMTKN-1-" + strings.Repeat("0", 50) + "-" + strings.Repeat("0", 25))
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := ca.ParseToken(s); err == nil && token.String() != s {
			t.Errorf("%q came back as %q", s, token.String())
		}
	})
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certificates")
	files := ca.Files{Dir: dir}
	if _, err := files.Load(nil, now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of nothing: %v", err)
	}
	r := root(t)
	k := issue(t, r, swarm.NodeRoleManager)
	for _, kek := range [][]byte{nil, []byte("secret"), []byte("another"), nil} {
		logKeys := [][]byte{[]byte("a key of the log"), []byte("an older one")}[:len(kek)%3]
		if err := files.Save(k.WithLogKeys(logKeys), kek); err != nil {
			t.Fatal(err)
		}
		back, err := files.Load(kek, now())
		if err != nil || back.Identity() != k.Identity() || string(back.Key) != string(k.Key) || !slices.EqualFunc(back.LogKeys(), logKeys, bytes.Equal) {
			t.Fatalf("Load with %q = %v", kek, err)
		}
		if same, err := back.WithRoot(r, now()); err != nil || len(same.LogKeys()) != len(logKeys) {
			t.Errorf("another root changes the log's keys: %v", err)
		}
		if len(kek) > 0 {
			for _, wrong := range [][]byte{nil, []byte("wrong")} {
				if _, err := files.Load(wrong, now()); !errors.Is(err, ca.ErrLocked) {
					t.Errorf("Load with %q: %v", wrong, err)
				}
			}
		}
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "swarm-node.key": 0o600, "swarm-node.crt": 0o644, "swarm-root-ca.crt": 0o644} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	// An expired certificate is still the node's identity.
	if _, err := files.Load(nil, now().Add(1000*time.Hour)); err != nil {
		t.Error("expired:", err)
	}
}

// A crash between the writes of key and certificate leaves a usable identity.
func TestFilesTornSave(t *testing.T) {
	files := ca.Files{Dir: t.TempDir()}
	r := root(t)
	old, next := issue(t, r, swarm.NodeRoleWorker), issue(t, r, swarm.NodeRoleManager)
	if err := files.Save(old, nil); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"swarm-node.key.old": old.Key, "swarm-node.key": next.Key} {
		if err := os.WriteFile(filepath.Join(files.Dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if k, err := files.Load(nil, now()); err != nil || k.Identity() != old.Identity() {
			t.Errorf("Load = %v", err)
		}
		if _, err := os.Stat(filepath.Join(files.Dir, "swarm-node.key.old")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the old key stays beside: %v", err)
		}
	}
}

func TestRenewAt(t *testing.T) {
	leaf := issue(t, root(t), swarm.NodeRoleWorker).Leaf()
	rapid.Check(t, func(t *rapid.T) {
		at := ca.RenewAt(leaf, rapid.Float64Range(0, 0.999999).Draw(t, "random"))
		life := 24 * time.Hour
		if at.Before(now().Add(life/2)) || at.After(now().Add(life*8/10)) {
			t.Errorf("renew at %v", at.Sub(now()))
		}
	})
}
