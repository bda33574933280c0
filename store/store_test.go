package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legion-swarm/legion/api"
)

func newLocal(t testing.TB, c Config) *Store {
	t.Helper()
	s, err := NewLocal(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func service(id, name string) *api.Service {
	s := &api.Service{}
	s.ID, s.Spec.Name = id, name
	return s
}

func update(t testing.TB, s *Store, fn func(tx *Tx) error) uint64 {
	t.Helper()
	index, err := s.Update(context.Background(), fn)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func create(t testing.TB, s *Store, id, name string) uint64 {
	t.Helper()
	return update(t, s, func(tx *Tx) error { return Create(tx, service(id, name)) })
}

func rename(tx *Tx, id, name string) error {
	c := *Get[*api.Service](tx, id)
	c.Spec.Name = name
	return Put(tx, &c)
}

func TestStaleVersionIsOutOfSequence(t *testing.T) {
	s := newLocal(t, Config{})
	create(t, s, "a", "web")
	stale := *Get[*api.Service](s.View(), "a")
	update(t, s, func(tx *Tx) error { return rename(tx, "a", "web2") })
	runs := 0
	_, err := s.Update(t.Context(), func(tx *Tx) error { runs++; return Put(tx, &stale) })
	if !api.Is(err, api.OutOfSequence) || !strings.Contains(err.Error(), "update out of sequence") || runs != 1 {
		t.Fatalf("%v after %d runs", err, runs)
	}
}

// TestConflictsRunAgain has many clients count in one object: none is lost.
func TestConflictsRunAgain(t *testing.T) {
	s := newLocal(t, Config{})
	create(t, s, "a", "web")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				_, err := s.Update(context.Background(), func(tx *Tx) error {
					c := *Get[*api.Service](tx, "a")
					c.SpecVersion++
					return Put(tx, &c)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := Get[*api.Service](s.View(), "a").SpecVersion; n != 400 {
		t.Fatalf("counted to %d; want 400", n)
	}
}

// proposer is a function.
type proposer func(ctx context.Context, data []byte) (uint64, error)

func (p proposer) Propose(ctx context.Context, data []byte) (uint64, error) { return p(ctx, data) }

func TestConflictsEndWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Proposer: proposer(func(context.Context, []byte) (uint64, error) { return 1, errStale })})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		runs := 0
		_, err = s.Update(ctx, func(tx *Tx) error { runs++; return Create(tx, service("a", "web")) })
		if !api.Is(err, api.Conflict) || !errors.Is(err, context.DeadlineExceeded) || runs < 20 || runs > 100 {
			t.Fatalf("%v after %d runs", err, runs)
		}
	})
}

// TestUpdatesArePipelined has a second update done while the first one waits for
// its quorum.
func TestUpdatesArePipelined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *Store
		var mu sync.Mutex
		index := uint64(0)
		s, err := New(Config{Proposer: proposer(func(_ context.Context, data []byte) (uint64, error) {
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			index++
			result, fatal := s.Apply(index, data)
			return index, errors.Join(result, fatal)
		})})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { create(t, s, fmt.Sprint("id", i), fmt.Sprint("name", i)) })
		}
		wg.Wait()
		if d := time.Since(began); d != time.Second {
			t.Fatalf("100 updates took %s", d)
		}
	})
}

func TestNamesAreUniqueAtApply(t *testing.T) {
	s := newLocal(t, Config{})
	create(t, s, "a", "Web")
	if _, err := s.Update(t.Context(), func(tx *Tx) error { return Create(tx, service("b", "wEB")) }); !api.Is(err, api.Exists) {
		t.Fatal(err)
	}
	// Two creations on the same snapshot: the log decides.
	one, two := s.begin(), s.begin()
	for tx, id := range map[*Tx]string{one: "x", two: "y"} {
		if err := Create(tx, service(id, "same")); err != nil {
			t.Fatal(err)
		}
	}
	for i, tx := range []*Tx{one, two} {
		data, err := encode(tx)
		if err != nil {
			t.Fatal(err)
		}
		result, fatal := s.Apply(uint64(10+i), data)
		if fatal != nil || (result == nil) != (i == 0) || i == 1 && !api.Is(result, api.Exists) {
			t.Fatalf("entry %d: %v, %v", i, result, fatal)
		}
	}
	// Names may be swapped in one transaction.
	create(t, s, "b", "db")
	update(t, s, func(tx *Tx) error {
		return errors.Join(rename(tx, "a", "tmp"), rename(tx, "b", "web"), rename(tx, "a", "db"))
	})
	if a, b := Get[*api.Service](s.View(), "a"), Get[*api.Service](s.View(), "b"); a.Spec.Name != "db" || b.Spec.Name != "web" {
		t.Fatalf("a is %s, b is %s", a.Spec.Name, b.Spec.Name)
	}
}

func TestRejectedEntryChangesNothing(t *testing.T) {
	s := newLocal(t, Config{})
	create(t, s, "a", "web")
	tx := s.begin()
	if err := errors.Join(Create(tx, service("b", "other")), rename(tx, "a", "web2")); err != nil {
		t.Fatal(err)
	}
	data, err := encode(tx)
	if err != nil {
		t.Fatal(err)
	}
	at := update(t, s, func(tx *Tx) error { return rename(tx, "a", "web3") })
	_, w := s.Watch()
	defer w.Close()
	if result, fatal := s.Apply(at+1, data); !errors.Is(result, errStale) || fatal != nil {
		t.Fatalf("%v, %v", result, fatal)
	}
	if Get[*api.Service](s.View(), "b") != nil || Count[*api.Service](s.View()) != 1 || s.View().Index() != at+1 {
		t.Fatal("a part of a rejected entry was applied")
	}
	if len(w.pending) > 0 {
		t.Fatal("a rejected entry was told to a watcher")
	}
}

func TestTooLargeAChange(t *testing.T) {
	s := newLocal(t, Config{})
	_, err := s.Update(t.Context(), func(tx *Tx) error {
		c := &api.Config{}
		c.ID, c.Spec.Name, c.Spec.Data = "c", "c", make([]byte, maxChange)
		return Create(tx, c)
	})
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "8 MiB") {
		t.Fatal(err)
	}
}

func TestNoProposer(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(t.Context(), func(tx *Tx) error { return Create(tx, service("a", "web")) }); !api.Is(err, api.Unavailable) {
		t.Fatal(err)
	}
}

func TestWatchOverflowAndRestore(t *testing.T) {
	s := newLocal(t, Config{WatchLimit: 5})
	_, slow := s.Watch()
	_, other := s.Watch(KindTask)
	defer slow.Close()
	defer other.Close()
	for i := range 6 {
		create(t, s, fmt.Sprint("id", i), fmt.Sprint("name", i))
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrOverflow) {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Snapshot()(&b); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Next(t.Context()); !errors.Is(err, ErrOverflow) {
		t.Fatalf("after a restore: %v", err)
	}
	if Count[*api.Service](s.View()) != 6 {
		t.Fatal("restore lost something")
	}
}

func TestFailedRestoreChangesNothing(t *testing.T) {
	s := newLocal(t, Config{})
	fill(t, s, 50)
	var b bytes.Buffer
	if err := s.Snapshot()(&b); err != nil {
		t.Fatal(err)
	}
	before := s.View()
	for at := 0; at < b.Len(); at += 37 {
		damaged := bytes.Clone(b.Bytes())
		damaged[at] ^= 0x55
		if err := s.Restore(bytes.NewReader(damaged)); err == nil {
			t.Fatalf("byte %d: no error", at)
		}
	}
	if s.View() != before {
		t.Fatal("a failed restore changed the store")
	}
}

// TestReadersAndWriters is for the race detector.
func TestReadersAndWriters(t *testing.T) {
	s := newLocal(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	var readers, writers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			v, w := s.Watch()
			defer w.Close()
			n := Count[*api.Service](v)
			for {
				changes, err := w.Next(ctx)
				if err != nil {
					break
				}
				n += len(changes)
			}
			if n != 300 {
				t.Errorf("a watcher saw %d services; want 300", n)
			}
		})
	}
	for c := range 3 {
		writers.Go(func() {
			for i := range 100 {
				create(t, s, fmt.Sprintf("%d-%d", c, i), fmt.Sprintf("n%d-%d", c, i))
				if Get[*api.Service](s.View(), fmt.Sprintf("%d-%d", c, i)) == nil {
					t.Error("a write is not there when Update returns")
				}
			}
		})
	}
	writers.Wait()
	synced(s)
	cancel()
	readers.Wait()
}

// synced waits until no watcher has anything pending.
func synced(s *Store) {
	for busy := true; busy; {
		busy = false
		s.mu.Lock()
		for w := range s.watchers {
			w.mu.Lock()
			busy = busy || len(w.pending) > 0
			w.mu.Unlock()
		}
		s.mu.Unlock()
	}
}

// Writes are dated by the store's clock, which may be set back: what is made then can
// come after what was made before all the same.
func TestDates(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s := newLocal(t, Config{Now: func() time.Time { return now }})
	for id, made := range map[string]time.Time{"never": {}, "before": now.Add(-time.Hour), "later": now.Add(time.Hour)} {
		o := service(id, id)
		o.CreatedAt = made
		update(t, s, func(tx *Tx) error { return Create(tx, o) })
		want := now
		if made.After(now) {
			want = made
		}
		if got := Get[*api.Service](s.View(), id); !got.CreatedAt.Equal(want) || !got.UpdatedAt.Equal(now) {
			t.Errorf("%s: created %v, updated %v", id, got.CreatedAt, got.UpdatedAt)
		}
	}
	now = now.Add(-time.Minute)
	update(t, s, func(tx *Tx) error { return rename(tx, "later", "web") })
	if got := Get[*api.Service](s.View(), "later"); !got.UpdatedAt.Equal(now) || !got.CreatedAt.Equal(now.Add(time.Hour+time.Minute)) {
		t.Errorf("created %v, updated %v", got.CreatedAt, got.UpdatedAt)
	}
}
