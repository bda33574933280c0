package node

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
)

// reopen does what a restart of the daemon does.
func (n *testNode) reopen() {
	n.t.Helper()
	dir := n.dir
	n.end(nil)
	n.open(dir)
}

func (n *testNode) unlockKey() string {
	n.t.Helper()
	key, err := n.SwarmUnlockKey(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return key
}

// isLocked checks that the node answers as a locked one does, and that it is not
// open for the key.
func (n *testNode) isLocked(wrong string) {
	n.t.Helper()
	if state, err := n.state(); state != swarm.LocalNodeStateLocked || err == nil {
		n.t.Fatalf("state %s, %v", state, err)
	}
	const sentence = `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`
	_, err := n.ServiceList(n.t.Context(), nil, false)
	if !api.Is(err, api.Unavailable) || err.Error() != sentence {
		n.t.Errorf("a locked node says %v", err)
	}
	if _, err := n.SwarmUnlockKey(n.t.Context()); err == nil || err.Error() != sentence {
		n.t.Errorf("a locked node's key: %v", err)
	}
	if err := n.SwarmUnlock(n.t.Context(), wrong); !api.Is(err, api.Unauthenticated) || !strings.Contains(err.Error(), "invalid key provided") {
		n.t.Errorf("unlocked with a wrong key: %v", err)
	}
	for _, key := range []string{"", "SWMKEY-1-x"} {
		if err := n.SwarmUnlock(n.t.Context(), key); !api.Is(err, api.Invalid) {
			n.t.Errorf("unlocked with no key: %v", err)
		}
	}
	if err := n.SwarmLeave(n.t.Context(), false); err == nil || !strings.Contains(err.Error(), "unlock it first") {
		n.t.Errorf("leave: %v", err)
	}
}

// onDisk returns the names of the files below the swarm's folder in which a text
// stands.
func (n *testNode) onDisk(text string) (names []string) {
	n.t.Helper()
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, workerDir) {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(text)) {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return names
}

const otherKey = "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func (n *testNode) autolock(on bool, f dockerapi.SwarmUpdateFlags) string {
	n.t.Helper()
	if err := n.updateSwarm(f, func(s *swarm.Spec) { s.EncryptionConfig.AutoLockManagers = on }); err != nil {
		n.t.Fatal(err)
	}
	return n.unlockKey()
}

func TestAutolock(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.create(spec("conspicuous", 2))
	n.until("two run", alive(2))
	if err := n.SwarmUnlock(t.Context(), otherKey); !api.Is(err, api.Conflict) {
		t.Errorf("unlock of what is not locked: %v", err)
	}
	if n.unlockKey() != "" || len(n.onDisk("BEGIN PRIVATE KEY")) == 0 {
		t.Fatal("without autolock there is no key, and the node's own is in the clear")
	}
	if names := n.onDisk("conspicuous"); len(names) > 0 {
		t.Errorf("without autolock the log is encrypted as well, but for %q", names)
	}
	first := n.autolock(true, dockerapi.SwarmUpdateFlags{})
	if names := append(n.onDisk("conspicuous"), n.onDisk("BEGIN PRIVATE KEY")...); len(names) > 0 {
		t.Errorf("in the clear under autolock: %q", names)
	}
	n.reopen()
	n.isLocked(otherKey)
	if err := n.SwarmUnlock(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	n.until("two run after unlock", alive(2))
	if starts := n.starts.Load(); starts != 2 {
		t.Errorf("%d containers were started; want 2", starts)
	}

	second := n.autolock(true, dockerapi.SwarmUpdateFlags{RotateManagerUnlockKey: true})
	if second == first {
		t.Error("the key was not rotated")
	}
	// A renewed certificate is as well encrypted.
	if err := n.updateSwarm(dockerapi.SwarmUpdateFlags{}, func(s *swarm.Spec) { s.CAConfig.ForceRotate++ }); err != nil {
		t.Fatal(err)
	}
	n.untilRotated()
	if names := append(n.onDisk("conspicuous"), n.onDisk("BEGIN PRIVATE KEY")...); len(names) > 0 {
		t.Errorf("in the clear after a rotation: %q", names)
	}
	n.reopen()
	n.isLocked(first)
	if err := n.SwarmUnlock(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	n.until("two run after the second unlock", alive(2))

	if key := n.autolock(false, dockerapi.SwarmUpdateFlags{}); key != "" {
		t.Error("a key without autolock")
	}
	err := n.updateSwarm(dockerapi.SwarmUpdateFlags{RotateManagerUnlockKey: true}, func(*swarm.Spec) {})
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "autolock is not turned on") {
		t.Errorf("rotation without autolock: %v", err)
	}
	if names := n.onDisk("conspicuous"); len(names) > 0 || len(n.onDisk("BEGIN PRIVATE KEY")) == 0 {
		t.Errorf("after autolock only the node's own key is in the clear, not %q", names)
	}
	n.reopen()
	n.until("two run without unlock", alive(2))
}

// TestClearLogIsSealed: a log that was begun in the clear is encrypted by the
// first start that finds it so.
func TestClearLogIsSealed(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.create(spec("conspicuous", 1))
	n.until("one runs", alive(1))
	p, err := n.leading()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.raft.Reseal(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := p.vault.save(p.vault.creds.Keys().WithLogKeys(nil), nil); err != nil {
		t.Fatal(err)
	}
	if len(n.onDisk("conspicuous")) == 0 {
		t.Fatal("the log is not in the clear")
	}
	n.reopen()
	n.until("one runs again", alive(1))
	if p, err = n.leading(); err != nil {
		t.Fatal(err)
	}
	p.whenLocked(t.Context())
	if names := n.onDisk("conspicuous"); len(names) > 0 {
		t.Errorf("still in the clear: %q", names)
	}
}

func TestInitWithAutolock(t *testing.T) {
	n := newTestNode(t, nil)
	_, err := n.SwarmInit(t.Context(), &swarm.InitRequest{ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1", AutoLockManagers: true})
	if err != nil {
		t.Fatal(err)
	}
	key := n.unlockKey()
	n.create(spec("conspicuous", 1))
	n.until("one runs", alive(1))
	if names := append(n.onDisk("conspicuous"), n.onDisk("BEGIN PRIVATE KEY")...); len(names) > 0 {
		t.Errorf("in the clear: %q", names)
	}
	n.reopen()
	n.isLocked(otherKey)
	if err := n.SwarmLeave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if state, err := n.state(); state != swarm.LocalNodeStateInactive || err != nil {
		t.Errorf("after leave: %s, %v", state, err)
	}
	if err := n.SwarmUnlock(t.Context(), key); !api.Is(err, api.Unavailable) || errors.Is(err, errLocked) {
		t.Errorf("unlock without swarm: %v", err)
	}
}
