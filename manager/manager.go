// Package manager runs what only the leader of a swarm runs: its loops, all
// listed in one place, for as long as this manager leads.
package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/manager/allocator"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/manager/scheduler"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

// Loop is a leader's loop. Run blocks until ctx ends; when it returns earlier,
// the leadership epoch ends with it.
type Loop struct {
	Name string
	Run  func(ctx context.Context) error
}

// Leadership tells who leads. *raftnode.Node implements it.
type Leadership interface {
	Status() raftnode.Status
	// Changed is closed when Status has changed.
	Changed() <-chan struct{}
	// TransferLeadership asks another manager to lead; id 0: any. It returns at
	// once; an error: nobody could.
	TransferLeadership(ctx context.Context, id uint64) error
	// Barrier returns once all that was proposed here before is applied.
	Barrier(ctx context.Context) error
}

var _ Leadership = (*raftnode.Node)(nil)

// Config is what a Manager needs; all is required.
type Config struct {
	Store      *store.Store
	Leadership Leadership
	Log        *slog.Logger
	// Loops that run besides the manager's own.
	Loops []Loop
}

// Manager runs the leader's loops.
type Manager struct {
	cfg   Config
	loops []Loop
}

// New returns a manager. It has no effects until Run.
func New(cfg Config) *Manager {
	log := func(name string) *slog.Logger { return cfg.Log.With("loop", name) }
	return &Manager{cfg: cfg, loops: append([]Loop{
		{"allocator", (&allocator.Loop{Store: cfg.Store, Log: log("allocator")}).Run},
		{"scheduler", (&scheduler.Loop{Store: cfg.Store, Log: log("scheduler")}).Run},
		{"orchestrator", (&orchestrator.Loop{Store: cfg.Store, Log: log("orchestrator"), Fits: scheduler.Fits}).Run},
	}, cfg.Loops...)}
}

// Pauses before the loops start over; the first after a while without failures.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	calm       = time.Minute
	// enough is after how many failures in a row another manager shall try.
	enough = 3
	// stuckAfter is how long loops may take to end before it is said which do not.
	stuckAfter = 10 * time.Second
	// hungAfter is how long a loop may work on changes without writing anything or
	// asking for more, before another manager shall lead. The longest plan takes
	// seconds.
	hungAfter = 30 * time.Second
)

// Run runs the loops whenever this manager leads, until ctx ends. A loop that
// fails ends the epoch: when all have ended they start over from the store, after
// a pause; if they fail again and again, another manager is asked to lead. Loops
// of two epochs never run at the same time.
func (m *Manager) Run(ctx context.Context) error {
	pause, failures := firstPause, 0
	led := uint64(0) // the last term in which the loops ran
	for ctx.Err() == nil {
		changed := m.cfg.Leadership.Changed()
		st := m.cfg.Leadership.Status()
		if !st.IsLeader {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := m.settle(ctx, led, st.Term)
		if err == nil {
			led = st.Term
			err = m.epoch(ctx, st.Term)
		}
		if err == nil || !m.leads(st.Term) { // writes fail when leadership ends
			m.cfg.Log.Info("this manager leads no more", "term", st.Term)
			pause, failures = firstPause, 0
			continue
		}
		if time.Since(began) > calm {
			pause, failures = firstPause, 0
		}
		failures++
		m.cfg.Log.Error("a loop of the leader failed; all start over", "term", st.Term, "err", err, "pause", pause)
		if failures >= enough {
			if err := m.cfg.Leadership.TransferLeadership(ctx, 0); err == nil {
				m.cfg.Log.Warn("another manager is asked to lead", "failures", failures)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
	return nil
}

func (m *Manager) leads(term uint64) bool {
	st := m.cfg.Leadership.Status()
	return st.IsLeader && st.Term == term
}

// settle waits for what the loops have written in an earlier epoch of the same term
// and given up waiting for: it may still be on its way into the store, from which
// the loops start over. They would decide the same things again, addresses and new
// tasks too, that no version guards. Earlier terms are over when this one begins.
func (m *Manager) settle(ctx context.Context, led, term uint64) error {
	if led != term {
		return nil
	}
	if err := m.cfg.Leadership.Barrier(raftnode.InTerm(ctx, term)); err != nil {
		return fmt.Errorf("wait for what was written before: %w", err)
	}
	return nil
}

// epoch runs the loops while this manager leads in the term, and returns when
// all have ended. nil: it leads no more, or ctx ended.
func (m *Manager) epoch(ctx context.Context, term uint64) error {
	m.cfg.Log.Info("this manager leads the swarm", "term", term)
	// A loop that has not yet noticed that its time is over writes nothing more.
	ctx, end := context.WithCancel(raftnode.InTerm(ctx, term))
	defer end()
	g, ctx := errgroup.WithContext(ctx)
	running := newRunning(m.loops)
	defer context.AfterFunc(ctx, func() { m.watchEnd(running) })()
	progress := make([]store.Progress, len(m.loops))
	g.Go(func() error { m.watchProgress(ctx, progress); return nil })
	for i, l := range m.loops {
		g.Go(func() error {
			defer running.ended(l.Name)
			err := l.Run(store.WithProgress(ctx, &progress[i]))
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				err = errors.New("ended by itself")
			}
			return fmt.Errorf("%s: %w", l.Name, err)
		})
	}
	g.Go(func() error {
		defer end()
		for {
			changed := m.cfg.Leadership.Changed()
			if !m.leads(term) {
				return nil
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// watchProgress has another manager lead if a loop hangs. Where there is none,
// nothing but a restart helps, and that is said.
func (m *Manager) watchProgress(ctx context.Context, progress []store.Progress) {
	const looks = 6
	t := time.NewTicker(hungAfter / looks)
	defer t.Stop()
	steps, same := make([]uint64, len(progress)), make([]int, len(progress))
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for i := range progress {
			step, busy := progress[i].Busy()
			if !busy || step != steps[i] {
				steps[i], same[i] = step, 0
				continue
			}
			if same[i]++; same[i]%looks != 0 {
				continue
			}
			log := m.cfg.Log.With("loop", m.loops[i].Name, "for", time.Duration(same[i]/looks)*hungAfter)
			if err := m.cfg.Leadership.TransferLeadership(ctx, 0); err != nil {
				log.Error("a loop of the leader hangs, and no other manager can lead: restart this node", "err", err)
			} else {
				log.Error("a loop of the leader hangs; another manager is asked to lead")
			}
		}
	}
}

// running are the loops of an epoch that have not ended.
type running struct {
	mu    sync.Mutex
	names map[string]int
	none  chan struct{} // closed when there are none
}

func newRunning(loops []Loop) *running {
	r := &running{names: map[string]int{}, none: make(chan struct{})}
	for _, l := range loops {
		r.names[l.Name]++
	}
	return r
}

func (r *running) ended(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[name]--; r.names[name] == 0 {
		delete(r.names, name)
	}
	if len(r.names) == 0 {
		close(r.none)
	}
}

// watchEnd says which loops go on although their epoch is over.
func (m *Manager) watchEnd(r *running) {
	t := time.NewTicker(stuckAfter)
	defer t.Stop()
	for {
		select {
		case <-r.none:
			return
		case <-t.C:
			r.mu.Lock()
			names := slices.Sorted(maps.Keys(r.names))
			r.mu.Unlock()
			m.cfg.Log.Error("loops of the leader are stuck; this manager can't lead again until they end", "loops", names)
		}
	}
}
