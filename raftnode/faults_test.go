package raftnode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode/disktest"
)

// list is an Applier that keeps what it is given, in order.
type list struct {
	mu    sync.Mutex
	items []string
}

func (l *list) Apply(_ uint64, data []byte) (result, fatal error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = append(l.items, string(data))
	return nil, nil
}

func (l *list) Snapshot() func(io.Writer) error {
	items := slices.Clone(l.all())
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(items) }
}

func (l *list) Restore(r io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = nil
	return json.NewDecoder(r).Decode(&l.items)
}

func (l *list) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.items)
}

var discard = slog.New(slog.DiscardHandler)

// solo is a running cluster of one.
type solo struct {
	*Node
	list *list
	end  func() error // stops it, and returns what Run did
}

func open(fs FS, change func(*Config)) (*Node, *list, error) {
	l := &list{}
	cfg := Config{ID: 1, Dir: "/d", Applier: l, Log: discard, FS: fs}
	if change != nil {
		change(&cfg)
	}
	n, err := Open(cfg)
	return n, l, err
}

func startSolo(t testing.TB, fs FS, change func(*Config)) *solo {
	t.Helper()
	n, l, err := open(fs, change)
	if err != nil {
		t.Fatal(err)
	}
	if n.Empty() {
		if err := n.Bootstrap("a:1"); err != nil {
			t.Fatal(err)
		}
	}
	return &solo{n, l, run(t, n)}
}

func run(t testing.TB, n *Node) (end func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	end = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = end() }) // tests that care call it
	return end
}

func (s *solo) propose(t testing.TB, data string) {
	t.Helper()
	if _, err := s.Propose(context.Background(), []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func (s *solo) stop(t testing.TB) {
	t.Helper()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
}

// TestCrashLosesNothingAcknowledged crashes the machine while clients write,
// with random sectors of unsynced writes lost.
func TestCrashLosesNothingAcknowledged(t *testing.T) {
	var logged bytes.Buffer
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		fs, acked := disktest.New(), []string{}
		for round := range 5 {
			s := startSolo(t, fs, func(c *Config) {
				c.SnapshotInterval, c.Log = 1+rng.Uint64N(40), slog.New(slog.NewTextHandler(&logged, nil))
			})
			if _, err := s.ReadIndex(context.Background()); err != nil {
				t.Fatal(err)
			}
			have := map[string]bool{}
			for _, item := range s.list.all() {
				if have[item] {
					t.Fatalf("seed %d, round %d: %.20s is there twice", seed, round, item)
				}
				have[item] = true
			}
			for _, item := range acked {
				if !have[item] {
					t.Fatalf("seed %d, round %d: %.20s was acknowledged and is lost", seed, round, item)
				}
			}
			fs.PowerOffAt(1 + rng.IntN(30))
			acked = append(acked, clients(s, round)...)
			fs = fs.Crash(rng)
			if err := s.end(); err != nil && !errors.Is(err, disktest.ErrCrashed) {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
	if !strings.Contains(logged.String(), "torn by a crash") {
		t.Error("no crash tore a write: the test is too weak")
	}
}

// clients writes from several goroutines until each has got an error, and
// returns what was acknowledged.
func clients(s *solo, round int) (acked []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				item := fmt.Sprintf("%d-%d-%d-%s", round, c, i, strings.Repeat("x", i%7*300))
				if _, err := s.Propose(context.Background(), []byte(item)); err != nil {
					return
				}
				mu.Lock()
				acked = append(acked, item)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return acked
}

func TestFailedFsyncHalts(t *testing.T) {
	fs := disktest.New()
	s := startSolo(t, fs, nil)
	s.propose(t, "a")
	fs.Break(func(f *disktest.Faults) { f.FailSync = func(string) error { return syscall.EIO } })
	if _, err := s.Propose(context.Background(), []byte("b")); !api.Is(err, api.Unavailable) {
		t.Fatalf("proposal: %v", err)
	}
	if err := s.end(); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), ".wal") {
		t.Fatalf("Run: %v", err)
	}
	if st := s.Status(); st.IsLeader || st.Err == nil {
		t.Errorf("status: %+v", st)
	}
	if _, err := s.Propose(context.Background(), []byte("c")); !api.Is(err, api.Unavailable) {
		t.Fatalf("proposal after the end: %v", err)
	}
	s = startSolo(t, fs.Crash(rand.New(rand.NewPCG(1, 1))), nil)
	s.propose(t, "d")
	if got := s.list.all(); got[0] != "a" || got[len(got)-1] != "d" {
		t.Fatalf("after restart: %v", got)
	}
}

// TestFullDisk has the disk full at a new segment, and (on a file system that
// copies on write) in the middle of a frame.
func TestFullDisk(t *testing.T) {
	for _, cow := range []bool{false, true} {
		t.Run(fmt.Sprintf("cow=%v", cow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { fullDisk(t, cow) })
		})
	}
}

func fullDisk(t *testing.T, cow bool) {
	fs := disktest.New()
	s := startSolo(t, fs, nil)
	s.propose(t, "before")
	fs.Break(func(f *disktest.Faults) { f.CopyOnWrite, f.Space = cow, 70_000 })
	big, acked := bytes.Repeat([]byte("y"), 100_000), 1
	var err error
	for err == nil {
		if _, err = s.Propose(t.Context(), big); err == nil {
			acked++
		}
	}
	if !api.Is(err, api.Unavailable) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space in /d") {
		t.Fatalf("on a full disk: %v", err)
	}
	if _, err := s.Propose(t.Context(), []byte("refused")); !strings.Contains(err.Error(), "nothing was changed") {
		t.Fatalf("the next one: %v", err)
	}
	if st := s.Status(); st.IsLeader || !errors.Is(st.Err, syscall.ENOSPC) {
		t.Fatalf("status: %+v", st)
	}
	fs.Break(func(f *disktest.Faults) { f.Space = -1 })
	time.Sleep(2 * spaceRetry)
	if st := s.Status(); !st.IsLeader || st.Err != nil {
		t.Fatalf("status with space again: %+v", st)
	}
	s.propose(t, "after")
	s.stop(t)
	s = startSolo(t, fs, nil)
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := s.list.all()
	if got[0] != "before" || got[len(got)-1] != "after" || slices.Contains(got, "refused") || len(got) < acked+1 || len(got) > acked+2 {
		t.Fatalf("%d items after restart, %d were acknowledged", len(got), acked)
	}
	s.stop(t)
}

// TestStopOnAFullDisk: what a member would write as it stops is not needed, so a disk
// that has become full since it last wrote is no error.
func TestStopOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := disktest.New()
		s := startSolo(t, fs, nil)
		s.propose(t, "a")
		writes := fs.Syncs()
		fs.Break(func(f *disktest.Faults) { f.CopyOnWrite, f.Space = true, 0 })
		s.stop(t)
		if fs.Syncs() != writes {
			t.Error("it was written after all")
		}
		fs.Break(func(f *disktest.Faults) { f.Space = -1 })
		s = startSolo(t, fs, nil)
		if _, err := s.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := s.list.all(); !slices.Equal(got, []string{"a"}) {
			t.Errorf("after restart: %v", got)
		}
		s.stop(t)
	})
}

func TestSlowDiskIsToldAndOneSyncServesAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		fs := disktest.New()
		s := startSolo(t, fs, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&logged, nil)) })
		s.propose(t, "warm")
		fs.Break(func(f *disktest.Faults) { f.SlowSync = 2 * time.Second })
		before := fs.Syncs()
		var wg sync.WaitGroup
		began := time.Now()
		for i := range 500 {
			wg.Go(func() { s.propose(t, fmt.Sprint(i)) })
		}
		wg.Wait()
		if d := time.Since(began); d > 4*time.Second {
			t.Errorf("500 proposals took %s; want two syncs of 2 s", d)
		}
		if n := fs.Syncs() - before; n > 2 {
			t.Errorf("%d syncs for 500 proposals at once", n)
		}
		fs.Break(func(f *disktest.Faults) { f.SlowSync = 0 })
		s.stop(t)
		if !strings.Contains(logged.String(), "the disk is slow") {
			t.Error("nothing was said of the slow disk")
		}
	})
}

func TestBarrierWaitsForWhatWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := disktest.New()
		s := startSolo(t, fs, nil)
		s.propose(t, "warm")
		term := s.Status().Term
		fs.Break(func(f *disktest.Faults) { f.SlowSync = 2 * time.Second })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Propose(ctx, []byte("given up")); !api.Is(err, api.DeadlineExceeded) {
			t.Fatalf("on a slow disk: %v", err)
		}
		if slices.Contains(s.list.all(), "given up") {
			t.Fatal("it is applied too early for this test")
		}
		if err := s.Barrier(InTerm(t.Context(), term)); err != nil {
			t.Fatal(err)
		}
		if got := s.list.all(); !slices.Equal(got, []string{"warm", "given up"}) {
			t.Errorf("behind the barrier: %q", got)
		}
		if err := s.Barrier(InTerm(t.Context(), term+1)); !api.Is(err, api.NotLeader) {
			t.Errorf("in another term: %v", err)
		}
		fs.Break(func(f *disktest.Faults) { f.SlowSync = 0 })
		s.stop(t)
		s = startSolo(t, fs, nil)
		if _, err := s.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := s.list.all(); !slices.Equal(got, []string{"warm", "given up"}) {
			t.Errorf("after a restart: %q", got)
		}
		s.stop(t)
	})
}

// TestSoloIsElectedAtOnceAndDoesNotTick takes no time in a bubble.
func TestSoloIsElectedAtOnceAndDoesNotTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := disktest.New()
		for range 3 {
			began := time.Now()
			s := startSolo(t, fs, nil)
			synctest.Wait()
			if st := s.Status(); !st.IsLeader || len(st.Members) != 1 || st.Members[0].Address != "a:1" {
				t.Fatalf("status: %+v", st)
			}
			s.propose(t, "x")
			if d := time.Since(began); d != 0 {
				t.Fatalf("it took %s", d)
			}
			s.stop(t)
		}
	})
}
