package store

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// heard has a watcher listen while count services are made, one each gap. It returns
// how often it was woken, and for how long a change waited at most.
func heard(t *testing.T, count int, gap time.Duration) (wakes int, longest time.Duration) {
	t.Helper()
	s := newLocal(t, Config{})
	_, w := s.Watch()
	defer w.Close()
	go func() {
		for i := range count {
			time.Sleep(gap)
			id := fmt.Sprintf("%04d", i)
			create(t, s, id, id)
		}
	}()
	for next := 0; next < count; wakes++ {
		changes, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			if want := fmt.Sprintf("%04d", next); c.ID != want {
				t.Fatalf("told of %s, want %s", c.ID, want)
			}
			next++
			longest = max(longest, time.Since(metaOf(c.New).CreatedAt))
		}
	}
	return wakes, longest
}

func TestThickChangesAreToldTogether(t *testing.T) {
	for _, c := range []struct {
		gap     time.Duration
		count   int
		wakes   int // at most
		longest time.Duration
	}{
		{time.Millisecond, thickAfter, thickAfter, 0},
		{time.Millisecond, 1000, thickAfter + 1000/3, thickGap},
		{thickGap + time.Microsecond, 100, 100, 0},
	} {
		t.Run(fmt.Sprint(c.count, " each ", c.gap), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				wakes, longest := heard(t, c.count, c.gap)
				if wakes > c.wakes || longest > c.longest {
					t.Fatalf("woken %d times, at most %d expected; a change waited %v, at most %v expected", wakes, c.wakes, longest, c.longest)
				}
			})
		})
	}
}

// What is there when the context ends is still told.
func TestThickChangesAreNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLocal(t, Config{})
		_, w := s.Watch()
		defer w.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range thickAfter + 1 {
			if i == thickAfter {
				time.AfterFunc(thickGap/2, cancel)
			}
			go create(t, s, fmt.Sprint(i), fmt.Sprint(i))
			if changes, err := w.Next(ctx); err != nil || len(changes) != 1 {
				t.Fatal(changes, err)
			}
		}
		if _, err := w.Next(ctx); err == nil {
			t.Fatal("the context has ended")
		}
	})
}
