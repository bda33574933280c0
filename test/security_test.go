package test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// secureNode is a swarm on a port of its own, with a service.
func secureNode(t *testing.T, flags ...string) (n *node, addr string) {
	t.Helper()
	n, addr = startedNode(t), "127.0.0.1:"+freePort(t)
	n.docker(t, append([]string{"swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", addr}, flags...)...)
	n.image(t, "app:1", "")
	n.service(t, "web", "--replicas", "2", "app:1", "sleep")
	n.awaitContainers(t, "web", 2)
	return n, addr
}

// presented is the certificate that the swarm's port shows.
func presented(t *testing.T, addr string) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// signedBy reports whether the swarm's port shows a certificate of the root.
func signedBy(t *testing.T, addr, rootPEM string) bool {
	t.Helper()
	block, _ := pem.Decode([]byte(rootPEM))
	if block == nil {
		t.Fatalf("no certificate: %q", rootPEM)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return presented(t, addr).CheckSignatureFrom(root) == nil
}

func TestRootRotation(t *testing.T) {
	n, addr := secureNode(t)
	before, pids := n.docker(t, "swarm", "ca"), n.pids(t, "web")
	id := n.docker(t, "node", "inspect", "self", "-f", "{{.ID}}")
	token := n.docker(t, "swarm", "join-token", "-q", "worker")
	if subject := presented(t, addr).Subject; subject.CommonName != id || !slices.Equal(subject.OrganizationalUnit, []string{"swarm-manager"}) ||
		!slices.Equal(subject.Organization, []string{n.docker(t, "info", "-f", "{{.Swarm.Cluster.ID}}")}) {
		t.Errorf("subject %s of node %s", subject, id)
	}

	// The client watches the rotation to its end and shows the new root.
	out := n.docker(t, "swarm", "ca", "--rotate")
	after := n.docker(t, "swarm", "ca")
	contains(t, out, "rotated TLS certificates")
	contains(t, out, "rotated CA certificates")
	contains(t, out, after)
	if after == before || !signedBy(t, addr, after) || n.docker(t, "swarm", "join-token", "-q", "worker") == token {
		t.Error("root, certificate and token should be new")
	}
	onDisk, err := os.ReadFile(n.data + "/swarm/certificates/swarm-root-ca.crt")
	if err != nil || strings.TrimSpace(string(onDisk)) != after {
		t.Errorf("the root on disk is another: %v", err)
	}
	if got := n.docker(t, "node", "inspect", "self", "-f", "{{.Description.TLSInfo.TrustRoot}}"); strings.TrimSpace(got) != after {
		t.Errorf("the node says that it trusts %s", got)
	}
	if !slices.Equal(n.pids(t, "web"), pids) {
		t.Error("the rotation touched containers")
	}

	t.Run("to a root of the user's", func(t *testing.T) {
		cert, key := userRoot(t, n.dir, 3*365*24*time.Hour)
		contains(t, n.dockerFails(t, "swarm", "ca", "--rotate", "--ca-cert", cert).Error(), "--ca-key")
		n.docker(t, "swarm", "ca", "--rotate", "--quiet", "--ca-cert", cert, "--ca-key", key, "--cert-expiry", "100h")
		want, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.docker(t, "swarm", "ca"); got != strings.TrimSpace(string(want)) || !signedBy(t, addr, got) {
			t.Errorf("the root is %s", got)
		}
		if life := time.Until(presented(t, addr).NotAfter); life > 100*time.Hour || life < 99*time.Hour {
			t.Errorf("the certificate lives for %v; want 100h", life)
		}
	})
	t.Run("refusals", func(t *testing.T) {
		cert, key := userRoot(t, n.dir, 24*time.Hour)
		contains(t, n.dockerFails(t, "swarm", "ca", "--rotate", "--ca-cert", cert, "--ca-key", key).Error(), "expires too soon")
		contains(t, n.dockerFails(t, "swarm", "update", "--cert-expiry", "59m").Error(), "minimum certificate expiry time is: 1h0m0s")
		cert, _ = userRoot(t, n.dir, 2*365*24*time.Hour) // of a key that the swarm does not get
		contains(t, n.dockerFails(t, "swarm", "ca", "--rotate", "--ca-cert", cert, "--external-ca", "protocol=cfssl,url=https://127.0.0.1:1,cacert="+cert).Error(), "external CA")
	})
	t.Run("detached", func(t *testing.T) {
		now := n.docker(t, "swarm", "ca")
		n.docker(t, "swarm", "ca", "--rotate", "--detach")
		await(t, "the rotation ends", func() error {
			if out := n.docker(t, "info", "-f", "{{.Swarm.Cluster.RootRotationInProgress}}"); out != "false" || n.docker(t, "swarm", "ca") == now {
				return &commandError{name: "docker", stderr: "still under way"}
			}
			return nil
		})
	})
	n.crash(t)
	n.start(t)
	n.awaitReplicas(t, "web", "2/2")
	if !slices.Equal(n.pids(t, "web"), pids) {
		t.Error("containers are others after a crash")
	}
}

// userRoot writes a root and its key, and returns the files' names.
func userRoot(t *testing.T, dir string, life time.Duration) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Our own root", Organization: []string{"Us"}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = dir+"/root.crt", dir+"/root.key"
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// The stock client's rotation ends without a node that is away; it comes back by
// itself.
func TestRootRotationWithoutANode(t *testing.T) {
	n, addr := secureNode(t)
	w := startedNode(t)
	w.docker(t, "swarm", "join", "--token", n.docker(t, "swarm", "join-token", "-q", "worker"), "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:"+freePort(t), addr)
	id := w.docker(t, "info", "-f", "{{.Swarm.NodeID}}")
	is := func(want string) {
		t.Helper()
		await(t, "node "+id+" is "+want, func() error {
			out, err := n.command("docker", "node", "inspect", id, "-f", "{{.Status.State}}")
			if err == nil && strings.TrimSpace(out) != want {
				err = errors.New("it is " + out)
			}
			return err
		})
	}
	is("ready")
	w.crash(t)
	is("down")
	n.docker(t, "swarm", "ca", "--rotate", "-q")
	w.start(t)
	is("ready")
	n.docker(t, "service", "create", "-d", "--no-resolve-image", "--name", "there", "--constraint", "node.id=="+id, "app:1", "sleep")
	w.image(t, "app:1", "")
	w.awaitContainers(t, "there", 1)
	onDisk, err := os.ReadFile(w.data + "/swarm/certificates/swarm-root-ca.crt")
	if err != nil || strings.TrimSpace(string(onDisk)) != n.docker(t, "swarm", "ca") {
		t.Errorf("the root on the disk of a node that was away is another: %v", err)
	}
}

// unlock gives the key to the stock client.
func (n *node) unlock(key string) (string, error) {
	cmd := exec.Command("docker", "swarm", "unlock")
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.socket, "DOCKER_CONFIG="+n.dir+"/client", "DOCKER_CONTEXT=")
	cmd.Stdin = strings.NewReader(key + "\n")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// clear returns the swarm's files in which a text stands.
func (n *node) clear(t *testing.T, texts ...string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(n.data+"/swarm", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, "/worker/") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, text := range texts {
			if bytes.Contains(b, []byte(text)) {
				names = append(names, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestAutolock(t *testing.T) {
	n, _ := secureNode(t)
	pids := n.pids(t, "web")
	contains(t, n.dockerFails(t, "swarm", "unlock-key").Error(), "no unlock key is set")
	contains(t, n.dockerFails(t, "swarm", "unlock-key", "--rotate").Error(), "autolock is not turned on")
	out := n.docker(t, "swarm", "update", "--autolock=true")
	first := n.docker(t, "swarm", "unlock-key", "-q")
	contains(t, out, first)
	if !regexp.MustCompile(`^SWMKEY-1-[A-Za-z0-9+/]{43}$`).MatchString(first) {
		t.Errorf("key %q", first)
	}
	// One who was told so may pull the plug.
	n.crash(t)
	if names := n.clear(t, "PRIVATE KEY-----\nMI", "com.docker", "app:1"); len(names) > 0 {
		t.Errorf("in the clear: %q", names)
	}
	n.start(t)
	n.checkLocked(t)
	if now := n.pids(t, "web"); !slices.Equal(now, pids) {
		t.Errorf("pids %v, were %v: a locked manager neither starts nor ends containers", now, pids)
	}
	if out, err := n.unlock("SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"); err == nil || !strings.Contains(out, "invalid key provided") {
		t.Errorf("a wrong key: %v, %s", err, out)
	}
	n.checkLocked(t)
	if out, err := n.unlock(first); err != nil {
		t.Fatalf("unlock: %v, %s", err, out)
	}
	n.docker(t, "node", "ls")
	n.awaitReplicas(t, "web", "2/2")
	if out, err := n.unlock(first); err == nil || !strings.Contains(out, "swarm is not locked") {
		t.Errorf("unlock of what is not locked: %v, %s", err, out)
	}

	second := n.docker(t, "swarm", "unlock-key", "--rotate", "-q")
	n.docker(t, "swarm", "ca", "--rotate", "-q")
	n.crash(t)
	n.start(t)
	n.checkLocked(t)
	if out, err := n.unlock(first); err == nil {
		t.Errorf("the old key still opens: %s", out)
	}
	if out, err := n.unlock(second); err != nil {
		t.Fatalf("unlock with the new key: %v, %s", err, out)
	}
	n.docker(t, "service", "scale", "-d", "web=3")
	n.awaitContainers(t, "web", 3)

	n.docker(t, "swarm", "update", "--autolock=false")
	n.crash(t)
	n.start(t)
	n.awaitReplicas(t, "web", "3/3")

	t.Run("leaving a locked swarm", func(t *testing.T) {
		n.docker(t, "swarm", "update", "--autolock=true")
		n.stop(t)
		n.start(t)
		contains(t, n.dockerFails(t, "swarm", "leave").Error(), "unlock it first")
		n.docker(t, "swarm", "leave", "--force")
		if out := n.docker(t, "info", "-f", "{{.Swarm.LocalNodeState}}"); out != "inactive" {
			t.Errorf("state %s", out)
		}
		out := n.docker(t, "swarm", "init", "--autolock", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:"+freePort(t))
		contains(t, out, "SWMKEY-1-")
	})
}

func (n *node) checkLocked(t *testing.T) {
	t.Helper()
	if out := n.docker(t, "info", "-f", "{{.Swarm.LocalNodeState}}"); out != "locked" {
		t.Fatalf("state %s", out)
	}
	for _, args := range [][]string{{"node", "ls"}, {"service", "ls"}, {"swarm", "unlock-key"}, {"swarm", "join-token", "worker"}, {"swarm", "ca"}} {
		contains(t, n.dockerFails(t, args...).Error(), `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`)
	}
}
