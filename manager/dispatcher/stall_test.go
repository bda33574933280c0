package dispatcher

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
)

func TestAwake(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(0, 0).Add(d) }
	var a awake
	if a.stood(at(time.Hour)) != 0 {
		t.Error("it stood still before it began")
	}
	for _, step := range []struct{ note, ask, want time.Duration }{
		{0, 0, 0},
		{pulse, 2 * pulse, 0},
		{2*pulse + stall, 2*pulse + stall, 0}, // late, but not by more than happens
		{2*pulse + stall, 2*pulse + stall + pulse + 3*time.Second, 3 * time.Second},
		{2*pulse + stall + pulse + 3*time.Second, 2*pulse + stall + pulse + 3*time.Second, 3 * time.Second},
		{10 * time.Second, 10 * time.Second, 3*time.Second + 5750*time.Millisecond},
	} {
		a.note(at(step.note))
		if got := a.stood(at(step.ask)); got != step.want {
			t.Errorf("noted at %v, asked at %v: %v, want %v", step.note, step.ask, got, step.want)
		}
	}
}

// watched is a dispatcher that has one node.
type watched struct {
	*Dispatcher
	t   *testing.T
	led atomic.Pointer[bool]
	chg atomic.Pointer[chan struct{}]
}

func (w *watched) lead(led bool) {
	w.led.Store(&led)
	next := make(chan struct{})
	if old := w.chg.Swap(&next); old != nil {
		close(*old)
	}
}

func (w *watched) state() swarm.NodeState {
	return store.Get[*api.Node](w.cfg.Store.View(), "n").Status.State
}

// watch runs a dispatcher whose node "n" has a session, as its Session call opens it.
func watch(t *testing.T) (*watched, *session) {
	st, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	update(t, st, func(tx *store.Tx) error {
		n := &api.Node{}
		n.ID = "n"
		return store.Create(tx, n)
	})
	w := &watched{t: t}
	w.lead(true)
	w.Dispatcher, err = New(Config{
		Store: st, Node: "m", Log: slog.New(slog.DiscardHandler),
		Peer: func(context.Context) (ca.Identity, string, bool) { return ca.Identity{}, "", false },
		Led:  func() (bool, <-chan struct{}) { c := *w.chg.Load(); return *w.led.Load(), c },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	s, err := w.open("n")
	if err != nil {
		t.Fatal(err)
	}
	limit := Grace(w.period())
	s.mu.Lock()
	s.limit, s.timer = limit, time.AfterFunc(limit, func() { w.expire(s) })
	s.mu.Unlock()
	if err := w.register(ctx, s, nil, "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	s.registered = true
	w.mu.Unlock()
	return w, s
}

// standStill is what is seen when the process has stood still for so long before now.
func (a *awake) standStill(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.still += d
}

// A manager that stood still does not hold it against its nodes: what they said is
// perhaps about to be read, whenever their time is up.
func TestManagerThatStoodStill(t *testing.T) {
	for name, c := range map[string]struct {
		stood []time.Duration // before which times of the grace period, of 12 s each
		alive time.Duration   // the node still counts as there
		gone  time.Duration   // and now it does not
	}{
		"never":                           {nil, 14 * time.Second, 15 * time.Second},
		"just before the period was over": {[]time.Duration{14 * time.Second}, 26 * time.Second, 27 * time.Second},
		"at its beginning":                {[]time.Duration{time.Second}, 26 * time.Second, 27 * time.Second},
		"again and again": {
			[]time.Duration{14 * time.Second, 20 * time.Second, 30 * time.Second, 45 * time.Second},
			50 * time.Second, 51 * time.Second,
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, _ := watch(t)
			begun := time.Now()
			for _, at := range c.stood {
				time.Sleep(at - time.Since(begun))
				w.awake.standStill(12 * time.Second)
			}
			time.Sleep(c.alive - time.Since(begun))
			if got := w.state(); got != swarm.NodeStateReady {
				t.Errorf("%s: %s after %v", name, got, c.alive)
			}
			time.Sleep(c.gone - time.Since(begun))
			if got := w.state(); got != swarm.NodeStateDown {
				t.Errorf("%s: %s after %v", name, got, c.gone)
			}
		})
	}
}

// That a node has no other session says nothing while nobody leads, and for as long
// after that as its agent may need to try again.
func TestNodesWhileNobodyLeads(t *testing.T) {
	for name, c := range map[string]struct {
		unled time.Duration // after the node was lost
		down  time.Duration // after somebody leads again
	}{
		"an election":  {500 * time.Millisecond, 1500 * time.Millisecond},
		"some seconds": {3 * time.Second, 4 * time.Second},
		"long":         {time.Hour, 9 * time.Second},
	} {
		for _, returns := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				w, s := watch(t)
				time.Sleep(10 * time.Second)
				w.lead(false)
				w.lose(s, api.Errorf(api.Unavailable, "silence"))
				time.Sleep(c.unled)
				w.lead(true)
				time.Sleep(c.down - time.Millisecond)
				if got := w.state(); got != swarm.NodeStateReady {
					t.Errorf("%s: %s before its time", name, got)
				}
				want := swarm.NodeStateDown
				if returns {
					want = swarm.NodeStateReady
					again, err := w.open("n")
					if err != nil {
						t.Fatal(err)
					}
					if err := w.register(t.Context(), again, nil, "10.0.0.1"); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Second)
				if got := w.state(); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			})
		}
	}
}
