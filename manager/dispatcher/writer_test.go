package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func startWriter(t testing.TB, s *store.Store) *writer {
	t.Helper()
	w := newWriter(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done }) //nolint:errcheck // its end is what counts
	return w
}

// Every caller gets the outcome of its own write, however they are bundled.
func TestWriter(t *testing.T) {
	s := newStore(t)
	w := startWriter(t, s)
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			err := w.do(context.Background(), func(tx *store.Tx) error {
				if i%10 == 0 {
					return boom
				}
				return store.Create(tx, newTask(fmt.Sprint("t", i), "node"))
			})
			if (i%10 == 0) != errors.Is(err, boom) || i%10 != 0 && err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := store.Count[*api.Task](s.View()); n != 900 {
		t.Errorf("%d tasks written, want 900", n)
	}
}

func TestWriterStops(t *testing.T) {
	w := newWriter(newStore(t))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = w.run(ctx)
	caller, stop := context.WithCancel(context.Background())
	stop()
	if err := w.do(caller, func(*store.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("do = %v", err)
	}
}

// Statuses from many nodes at once.
func BenchmarkStatuses(b *testing.B) {
	s := newStore(b)
	w := startWriter(b, s)
	const nodes = 64
	for i := range nodes {
		update(b, s, func(tx *store.Tx) error { return store.Create(tx, newTask(fmt.Sprint("t", i), "node")) })
	}
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range nodes {
		wg.Go(func() {
			for n := range b.N/nodes + 1 {
				err := w.do(context.Background(), func(tx *store.Tx) error {
					status := &swarm.TaskStatus{State: swarm.TaskStateRunning, Message: fmt.Sprint(n)}
					return apply(tx, "node", []statusUpdate{{fmt.Sprint("t", i), status}}, time.Now())
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestRan: a task that fails keeps how long it ran, whatever its node's clock says.
func TestRan(t *testing.T) {
	now := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		from, to swarm.TaskState
		at       time.Duration // by the node's clock, since it was RUNNING
		want     time.Duration
	}{
		"it ran":                         {swarm.TaskStateRunning, swarm.TaskStateFailed, time.Minute, time.Minute},
		"it never did":                   {swarm.TaskStateStarting, swarm.TaskStateFailed, time.Minute, 0},
		"it was told to end":             {swarm.TaskStateRunning, swarm.TaskStateShutdown, time.Minute, 0},
		"the node's clock went back":     {swarm.TaskStateRunning, swarm.TaskStateFailed, -time.Minute, time.Hour},
		"the node's clock jumped a year": {swarm.TaskStateRunning, swarm.TaskStateFailed, 365 * 24 * time.Hour, time.Hour},
	} {
		s := newStore(t)
		task := newTask("t", "node")
		task.Status = swarm.TaskStatus{State: c.from, Timestamp: time.Now()}
		update(t, s, func(tx *store.Tx) error { return store.Create(tx, task) })
		was := store.Get[*api.Task](s.View(), "t")
		update(t, s, func(tx *store.Tx) error {
			return apply(tx, "node", []statusUpdate{{"t", &swarm.TaskStatus{State: c.to, Timestamp: was.Since().Add(c.at)}}}, now)
		})
		if got := store.Get[*api.Task](s.View(), "t").Ran; (got - c.want).Abs() > time.Minute/2 {
			t.Errorf("%s: %v", name, got)
		}
	}
}
