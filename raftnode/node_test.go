package raftnode_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

var _ raftnode.Applier = (*store.Store)(nil)
var _ store.Proposer = (*raftnode.Node)(nil)

// member is a store on a log.
type member struct {
	store *store.Store
	node  *raftnode.Node
	stop  func() error
}

func start(t testing.TB, dir string, change func(*raftnode.Config)) *member {
	t.Helper()
	s, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := raftnode.Config{ID: 1, Dir: dir, Applier: s, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	n, err := raftnode.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if n.Empty() {
		if err := n.Bootstrap("127.0.0.1:2377"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	s.SetProposer(n)
	m := &member{s, n, sync.OnceValue(func() error { cancel(); return <-done })}
	t.Cleanup(func() {
		if err := m.stop(); err != nil {
			t.Error(err)
		}
	})
	m.waitLeader(t)
	return m
}

func (m *member) waitLeader(t testing.TB) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		changed := m.node.Changed()
		if m.node.Status().IsLeader {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("no leader: %+v", m.node.Status())
		}
	}
}

func service(name string) *api.Service {
	s := &api.Service{}
	s.ID, s.Spec.Name = api.NewID(), name
	return s
}

func (m *member) create(name string) error {
	_, err := m.store.Update(context.Background(), func(tx *store.Tx) error { return store.Create(tx, service(name)) })
	return err
}

func TestWhatIsAcknowledgedIsThereAfterRestart(t *testing.T) {
	dir := t.TempDir()
	const rounds, each = 4, 60
	for r := range rounds {
		m := start(t, dir, func(c *raftnode.Config) { c.SnapshotInterval = 50 })
		if got := store.Count[*api.Service](m.store.View()); got != r*each {
			t.Fatalf("round %d: %d services; want %d", r, got, r*each)
		}
		var wg sync.WaitGroup
		for i := range each {
			wg.Go(func() {
				if err := m.create(fmt.Sprintf("s%d-%d", r, i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*.snap")); err != nil || len(names) != 1 {
		t.Errorf("snapshots: %v, %v; want one", names, err)
	}
}

func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	start(t, dir, nil)
	s, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = raftnode.Open(raftnode.Config{ID: 1, Dir: dir, Applier: s, Log: slog.Default()})
	if !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("second open: %v", err)
	}
}

// segment returns the only segment's path and where its records end.
func segment(t *testing.T, dir string) (path string, b []byte, end int) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(names) != 1 {
		t.Fatalf("segments: %v, %v", names, err)
	}
	b, err = os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	return names[0], b, len(bytes.TrimRight(b, "\x00"))
}

func TestTornTailIsDropped(t *testing.T) {
	dir := t.TempDir()
	m := start(t, dir, nil)
	for i := range 3 {
		if err := m.create(fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	path, b, end := segment(t, dir)
	copy(b[end+1:], []byte{200, 1, 0, 0, 9, 9, 9, 9, 1, 'h', 'a', 'l', 'f'})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	m = start(t, dir, nil)
	if got := store.Count[*api.Service](m.store.View()); got != 3 {
		t.Fatalf("%d services; want 3", got)
	}
	if err := m.create("after"); err != nil {
		t.Fatal(err)
	}
}

func TestDamageInTheMiddleIsRefused(t *testing.T) {
	dir := t.TempDir()
	m := start(t, dir, nil)
	for i := range 5 {
		if err := m.create(fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	path, b, end := segment(t, dir)
	b[end/2] ^= 0xff
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = raftnode.Open(raftnode.Config{ID: 1, Dir: dir, Applier: s, Log: slog.Default()})
	if !errors.Is(err, raftnode.ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v", err)
	}
}

// xor stands for encryption.
type xor struct{}

func (xor) Seal(b []byte) ([]byte, error) {
	out := []byte{1}
	for _, c := range b {
		out = append(out, c^0x5a)
	}
	return out, nil
}

func (xor) Open(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != 1 {
		return nil, errors.New("not sealed")
	}
	var out []byte
	for _, c := range b[1:] {
		out = append(out, c^0x5a)
	}
	return out, nil
}

func TestSealedLogShowsNothing(t *testing.T) {
	dir := t.TempDir()
	sealed := func(c *raftnode.Config) { c.Sealer, c.SnapshotInterval = xor{}, 5 }
	m := start(t, dir, sealed)
	for i := range 12 {
		if err := m.create(fmt.Sprint("clandestine", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("clandestine")) {
			t.Errorf("%s has the name in clear", f.Name())
		}
	}
	m = start(t, dir, sealed)
	if got := store.Count[*api.Service](m.store.View()); got != 12 {
		t.Fatalf("%d services; want 12", got)
	}
}

// BenchmarkUpdateFsync is what a service create costs: transaction, raft, disk
// and all. fsync-us is the mean of a bare write and fdatasync of the same size,
// in the same folder, just before.
func BenchmarkUpdateFsync(b *testing.B) {
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			dir := b.TempDir()
			bare := bareSync(b, filepath.Join(dir, "bare"))
			m := start(b, filepath.Join(dir, "raft"), nil)
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range clients {
				wg.Go(func() {
					for i := c; i < b.N; i += clients {
						if err := m.create(fmt.Sprintf("s%d", i)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
			b.ReportMetric(float64(bare.Nanoseconds())/1000, "fsync-us")
		})
	}
}

// bareSync measures the disk.
func bareSync(b *testing.B, path string) time.Duration {
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			b.Error(err)
		}
	}()
	const n, size = 300, 500
	if _, err := f.Write(make([]byte, n*size)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	for i := range n {
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, size), int64(i*size)); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(began) / n
}
