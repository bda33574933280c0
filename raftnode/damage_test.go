package raftnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode/disktest"
)

// logOf returns a file system with a log of n entries, and the ends of its frames.
func logOf(t testing.TB, n int, change func(*Config)) (fs *disktest.Disk, path string, ends []int) {
	t.Helper()
	fs = disktest.New()
	s := startSolo(t, fs, change)
	for i := range n {
		s.propose(t, fmt.Sprintf("entry %d", i))
	}
	s.stop(t)
	path = "/d/" + segmentName(1)
	b := fs.Bytes(path)
	for end := 0; ; {
		f, ok := parseFrame(b[end:])
		if !ok {
			return fs, path, ends
		}
		end += f.size
		ends = append(ends, end)
	}
}

// TestDamageIsRefused changes each byte of a log in turn. Only a change in the
// last frame looks like a torn write.
func TestDamageIsRefused(t *testing.T) {
	fs, path, ends := logOf(t, 5, nil)
	data := fs.Bytes(path)
	lastFrame := ends[len(ends)-2]
	for i := range ends[len(ends)-1] {
		data[i] ^= 0x41
		n, _, err := open(fs, nil)
		data[i] ^= 0x41
		if i >= lastFrame {
			if err != nil {
				t.Fatalf("byte %d, in the last frame: %v", i, err)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			fs, path, _ = logOf(t, 5, nil) // the frame was dropped
			data = fs.Bytes(path)
			continue
		}
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "at byte") || !strings.Contains(err.Error(), "restore") {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
}

func TestZeroedMiddleIsRefused(t *testing.T) {
	fs, path, ends := logOf(t, 6, nil)
	clear(fs.Bytes(path)[ends[2]:ends[3]])
	if _, _, err := open(fs, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestMissingFilesAreRefused(t *testing.T) {
	big := strings.Repeat("z", 1<<20)
	fs := disktest.New()
	s := startSolo(t, fs, nil)
	for range 25 {
		s.propose(t, big)
	}
	s.stop(t)
	for _, tc := range []struct{ remove, says string }{
		{segmentName(1), "begins at entry"}, {segmentName(2), segmentName(2) + " is missing"},
	} {
		path := "/d/" + tc.remove
		whole := fs.Bytes(path)
		if err := fs.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, _, err := open(fs, nil); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("without %s: %v", tc.remove, err)
		}
		fs.SetBytes(path, whole)
	}
	s = startSolo(t, fs, nil)
	s.propose(t, "whole again")
	s.stop(t)
}

func TestDamagedSnapshotIsRefused(t *testing.T) {
	fs, _, _ := logOf(t, 30, func(c *Config) { c.SnapshotInterval = 10 })
	names, err := snapshots(fs, "/d")
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	data := fs.Bytes("/d/" + names[0])
	for i := range data {
		data[i] ^= 0x41
		if _, _, err := open(fs, nil); err == nil || !strings.Contains(err.Error(), names[0]) {
			t.Fatalf("byte %d: %v", i, err)
		}
		data[i] ^= 0x41
	}
	fs.SetBytes("/d/"+names[0], data[:len(data)/2])
	if _, _, err := open(fs, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("half a snapshot: %v", err)
	}
}

func TestAnotherMembersFolderIsRefused(t *testing.T) {
	fs, _, _ := logOf(t, 1, nil)
	if _, _, err := open(fs, func(c *Config) { c.ID = 2 }); err == nil || !strings.Contains(err.Error(), "another node's folder") {
		t.Fatal(err)
	}
}

func TestOldSnapshotsAndSegmentsGo(t *testing.T) {
	fs := disktest.New()
	s := startSolo(t, fs, nil)
	if err := s.SetRetention(t.Context(), Retention{SnapshotInterval: 10, KeepOldSnapshots: 2}); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("z", 1<<20)
	for i := range 60 {
		s.propose(t, big)
		if i%20 == 0 {
			s.list.mu.Lock()
			s.list.items = nil // keeps the test's snapshots small
			s.list.mu.Unlock()
		}
	}
	s.stop(t)
	snaps, err := snapshots(fs, "/d")
	if err != nil || len(snaps) > 3 || len(snaps) < 2 {
		t.Errorf("snapshots: %v, %v; want three", snaps, err)
	}
	segs, err := segments(fs, "/d")
	if err != nil || len(segs) > 4 {
		t.Errorf("segments: %v, %v; want only the last ones", segs, err)
	}
}

func key32(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func keyring(t testing.TB, current byte, old ...byte) *Keyring {
	t.Helper()
	var keys [][]byte
	for _, b := range old {
		keys = append(keys, key32(b))
	}
	k, err := NewKeyring(key32(current), keys...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestKeys seals, refuses without the key, changes keys while clients write, and
// then needs the new key only.
func TestKeys(t *testing.T) {
	fs := disktest.New()
	seal := func(s Sealer) func(*Config) {
		return func(c *Config) { c.Sealer, c.SnapshotInterval = s, 20 }
	}
	s := startSolo(t, fs, seal(nil))
	s.propose(t, "clandestine 0")
	if err := s.Reseal(t.Context(), keyring(t, 1)); err != nil {
		t.Fatal(err)
	}
	nothingInClear(t, fs)
	for i := range 50 {
		s.propose(t, fmt.Sprint("clandestine ", i))
	}
	s.stop(t)
	nothingInClear(t, fs)
	for _, wrong := range []Sealer{nil, keyring(t, 2)} {
		if _, _, err := open(fs, seal(wrong)); !errors.Is(err, ErrKey) {
			t.Fatalf("with the wrong key: %v", err)
		}
	}
	s = startSolo(t, fs, seal(keyring(t, 1)))
	done := make(chan error, 1)
	go func() { done <- s.Reseal(context.Background(), keyring(t, 2, 1)) }()
	for i := range 50 {
		s.propose(t, fmt.Sprint("clandestine, later ", i))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	s = startSolo(t, fs, seal(keyring(t, 2)))
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(s.list.all()); n != 101 {
		t.Fatalf("%d items; want 101", n)
	}
	s.stop(t)
	nothingInClear(t, fs)
	if _, err := NewKeyring([]byte("short")); err == nil {
		t.Error("a short key was taken")
	}
}

func nothingInClear(t *testing.T, fs *disktest.Disk) {
	t.Helper()
	for name, data := range fs.All() {
		if bytes.Contains(data, []byte("clandestine")) {
			t.Errorf("%s has data in clear", filepath.Base(name))
		}
	}
}

// TestCrashWhileKeysChange starts with both keys, wherever the change stopped.
func TestCrashWhileKeysChange(t *testing.T) {
	for at := 1; at < 12; at++ {
		fs, _, _ := logOf(t, 10, func(c *Config) { c.Sealer = keyring(t, 1) })
		fs = fs.Crash(rand.New(rand.NewPCG(uint64(at), 1)))
		s := startSolo(t, fs, func(c *Config) { c.Sealer = keyring(t, 1) })
		if _, err := s.ReadIndex(context.Background()); err != nil {
			t.Fatal(err)
		}
		fs.PowerOffAt(at)
		_ = s.Reseal(context.Background(), keyring(t, 2, 1)) // it may fail: the power goes
		fs = fs.Crash(rand.New(rand.NewPCG(uint64(at), 2)))
		_ = s.end() // likewise
		s = startSolo(t, fs, func(c *Config) { c.Sealer = keyring(t, 2, 1) })
		if _, err := s.ReadIndex(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := len(s.list.all()); n != 10 {
			t.Fatalf("power off at sync %d: %d items; want 10", at, n)
		}
		s.stop(t)
	}
}

func TestLimits(t *testing.T) {
	s := startSolo(t, disktest.New(), nil)
	if _, err := s.Propose(t.Context(), make([]byte, maxProposal+1)); !api.Is(err, api.ResourceExhausted) {
		t.Errorf("too large: %v", err)
	}
	if _, err := s.Propose(t.Context(), make([]byte, maxProposal)); err != nil {
		t.Errorf("largest: %v", err)
	}
	s.stop(t)
}

func FuzzLog(f *testing.F) {
	fs, path, ends := logOf(f, 4, nil)
	whole := fs.Bytes(path)[:ends[len(ends)-1]]
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		fs := disktest.New()
		fs.SetBytes("/d/"+segmentName(1), b)
		if n, _, err := open(fs, nil); err == nil {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
		// The same with a checksum that is right.
		fs.SetBytes("/d/"+segmentName(1), appendFrame(nil, 1, modeClear, b))
		if n, _, err := open(fs, nil); err == nil {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	var b bytes.Buffer
	h := &snapshotHead{Index: 7, Term: 2, Voters: []uint64{1}, Addresses: map[uint64]string{1: "a:1"}}
	if _, err := encodeSnapshot(&b, nil, h, func(w io.Writer) error { _, err := w.Write([]byte("data")); return err }); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, r, err := decodeSnapshot(bytes.NewReader(b), nil); err == nil {
			_ = r.drain() // must not panic
		}
	})
}

func FuzzMessage(f *testing.F) {
	m := raftpb.Message{Type: raftpb.MsgApp, From: 2, To: 1, Term: 3, Entries: []raftpb.Entry{{Index: 4, Term: 3, Data: []byte("x")}}}
	b, err := m.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseMessage(b) }) // must not panic
}

func FuzzKeyring(f *testing.F) {
	k := keyring(f, 1)
	b, err := k.Seal([]byte("clear"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = k.Open(b) }) // must not panic
}
