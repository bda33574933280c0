package manager

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

// leadership is what a test says it is.
type leadership struct {
	mu      sync.Mutex
	status  raftnode.Status
	changed chan struct{}
	// transfers counts requests that another manager lead.
	transfers int
	// barriers counts the waits for what was proposed; each lasts for slow.
	barriers int
	slow     time.Duration
}

func (l *leadership) Barrier(context.Context) error {
	l.mu.Lock()
	l.barriers++
	slow := l.slow
	l.mu.Unlock()
	time.Sleep(slow)
	return nil
}

func (l *leadership) TransferLeadership(context.Context, uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.transfers++
	return nil
}

func (l *leadership) Status() raftnode.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

func (l *leadership) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *leadership) set(lead bool, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status = raftnode.Status{IsLeader: lead, Term: term}
	close(l.changed)
	l.changed = make(chan struct{})
}

func follower() *leadership { return &leadership{changed: make(chan struct{})} }

// run runs a manager with a loop of the test besides its own, until the test
// ends it.
func run(t *testing.T, l *leadership, s *store.Store, loop func(ctx context.Context) error) (end func()) {
	t.Helper()
	m := New(Config{Store: s, Leadership: l, Log: slog.New(slog.DiscardHandler), Loops: []Loop{{Name: "test", Run: loop}}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func newStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLoopsRunWhileLeading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, starts atomic.Int32
		l := follower()
		end := run(t, l, newStore(t), func(ctx context.Context) error {
			starts.Add(1)
			if running.Add(1) > 1 {
				t.Error("loops of two epochs run at once")
			}
			<-ctx.Done()
			time.Sleep(time.Second) // it takes its time to end
			running.Add(-1)
			return ctx.Err()
		})
		check := func(when string, wantRunning, wantStarts int32) {
			t.Helper()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if running.Load() != wantRunning || starts.Load() != wantStarts {
				t.Errorf("%s: %d run, %d were started; want %d, %d", when, running.Load(), starts.Load(), wantRunning, wantStarts)
			}
		}
		check("follower", 0, 0)
		l.set(true, 3)
		check("leader", 1, 1)
		l.set(true, 3)
		check("another thing has changed", 1, 1)
		l.set(true, 5) // lost and won again between two looks
		check("another term", 1, 2)
		l.set(false, 6)
		check("follower again", 0, 2)
		end()
	})
}

func TestAnotherEpochOfATermWaitsForWhatTheFirstWrote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts []time.Time
		l := follower()
		l.slow = 3 * time.Second
		end := run(t, l, newStore(t), func(ctx context.Context) error {
			starts = append(starts, time.Now())
			<-ctx.Done()
			return ctx.Err()
		})
		began := time.Now()
		l.set(true, 3)
		time.Sleep(time.Second)
		l.set(false, 3) // the disk is full
		time.Sleep(time.Second)
		l.set(true, 3)
		time.Sleep(10 * time.Second)
		l.set(true, 4)
		time.Sleep(time.Second)
		end()
		if len(starts) != 3 || starts[0] != began || starts[1].Sub(began) != 5*time.Second || starts[2].Sub(began) != 12*time.Second || l.barriers != 1 {
			t.Errorf("started at %v after %v, with %d barriers", starts, began, l.barriers)
		}
	})
}

func TestFailedLoopEndsTheEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts []time.Time
		l := follower()
		l.set(true, 1)
		end := run(t, l, newStore(t), func(context.Context) error {
			starts = append(starts, time.Now())
			return errors.New("broken")
		})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		end()
		want := firstPause
		for i := 1; i < len(starts); i++ {
			if got := starts[i].Sub(starts[i-1]); got != want {
				t.Errorf("pause %d was %s, want %s", i, got, want)
			}
			want = min(2*want, maxPause)
		}
		if len(starts) < 7 {
			t.Errorf("started %d times in 10 s", len(starts))
		}
	})
}

func TestLoopThatEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := follower()
		l.set(true, 1)
		var starts atomic.Int32
		end := run(t, l, newStore(t), func(context.Context) error { starts.Add(1); return nil })
		time.Sleep(time.Second)
		synctest.Wait()
		end()
		if starts.Load() < 2 {
			t.Error("a loop that ended was not started again")
		}
	})
}

func TestAnotherManagerLeadsWhenLoopsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := follower()
		end := run(t, l, newStore(t), func(context.Context) error { return errors.New("broken") })
		l.set(true, 2)
		time.Sleep(250 * time.Millisecond) // failures at 0 and 100 ms
		l.mu.Lock()
		if l.transfers != 0 {
			t.Error("leadership was given away after two failures")
		}
		l.mu.Unlock()
		time.Sleep(time.Second)
		l.mu.Lock()
		if l.transfers == 0 {
			t.Error("leadership was not given away")
		}
		l.mu.Unlock()
		l.set(false, 3)
		end()
	})
}

// TestAnotherManagerLeadsWhenALoopHangs: one that waits for changes does not
// hang, nor does one that was not asked to do anything.
func TestAnotherManagerLeadsWhenALoopHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := follower(), newStore(t)
		write := func(id string) {
			n := &api.Node{}
			n.ID = id
			if _, err := s.Update(t.Context(), func(tx *store.Tx) error { return store.Create(tx, n) }); err != nil {
				t.Error(err)
			}
		}
		end := run(t, l, s, func(ctx context.Context) error {
			_, w := s.Watch(store.KindNode)
			defer w.Close()
			for {
				c, err := w.Next(ctx)
				if err != nil {
					return err
				}
				if c[0].ID == "poison" {
					<-ctx.Done() // as if it had looked away
				}
			}
		})
		transfers := func() int {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.transfers
		}
		l.set(true, 2)
		write("food")
		time.Sleep(time.Hour)
		if n := transfers(); n != 0 {
			t.Errorf("leadership was given away %d times though no loop hangs", n)
		}
		write("poison")
		time.Sleep(hungAfter - time.Second)
		if transfers() != 0 {
			t.Error("leadership was given away at once")
		}
		time.Sleep(hungAfter)
		if transfers() == 0 {
			t.Error("leadership was not given away")
		}
		l.set(false, 3)
		end()
	})
}
