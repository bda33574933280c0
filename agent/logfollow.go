package agent

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	maxFollowed = 1024 // tasks that one subscription follows
	maxLogQueue = 128  // messages of 16 KiB or less
)

// logWatch is a subscription that follows tasks as they come.
type logWatch struct {
	selector *swarmpb.LogSelector

	mu   sync.Mutex
	seen map[string]bool
	add  func(r *runner, tooMany bool)
	full bool
}

// offer adds the task to the subscription if it is wanted and not there yet.
func (l *logWatch) offer(r *runner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.add == nil || !l.claim(r):
	case len(l.seen) <= maxFollowed:
		l.add(r, false)
	case !l.full:
		l.full = true
		l.add(r, true)
	}
}

// claim reports whether the task is wanted and was not there yet. Called with mu
// held.
func (l *logWatch) claim(r *runner) bool {
	t, _ := r.snapshot()
	if !selects(l.selector, t) || l.seen[r.id] {
		return false
	}
	if len(l.seen) <= maxFollowed {
		l.seen[r.id] = true
	}
	return true
}

func (l *logWatch) stop() {
	l.mu.Lock()
	l.add = nil
	l.mu.Unlock()
}

func (w *worker) follow(ctx context.Context, selector *swarmpb.LogSelector, o exec.LogOptions, out *logBatcher) error {
	g, ctx := errgroup.WithContext(ctx)
	lines := make(chan *swarmpb.LogMessage, maxLogQueue)
	put := func(m *swarmpb.LogMessage) error {
		select {
		case lines <- m:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	read := func(r *runner, o exec.LogOptions) {
		g.Go(func() error {
			t, _ := r.snapshot()
			return r.logs(ctx, t, o, put)
		})
	}
	watch := &logWatch{selector: selector, seen: map[string]bool{}}
	// What a task prints that comes later is all new.
	later := o
	later.Tail = -1
	watch.add = func(r *runner, tooMany bool) {
		if tooMany {
			g.Go(func() error {
				return put(logNote(nil, "only "+strconv.Itoa(maxFollowed)+" tasks of a node are followed at once"))
			})
			return
		}
		read(r, later)
	}
	present := w.watch(watch)
	defer w.unwatch(watch)
	g.Go(func() error {
		defer watch.stop()
		last, err := history(ctx, present, o, out)
		if err != nil {
			return err
		}
		for _, r := range present {
			read(r, r.rest(o, last[r.id]))
		}
		return out.drain(ctx, lines)
	})
	return g.Wait()
}

// watch has tasks that come offered to the subscription, and returns those that
// are there.
func (w *worker) watch(l *logWatch) []*runner {
	w.mu.Lock()
	w.watchers[l] = struct{}{}
	runners := slices.Collect(maps.Values(w.runners))
	w.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(runners, func(r *runner) bool { return len(l.seen) >= maxFollowed || !l.claim(r) })
}

func (w *worker) unwatch(l *logWatch) {
	w.mu.Lock()
	delete(w.watchers, l)
	w.mu.Unlock()
}

// history sends what the tasks have printed so far, in order of time, and then a
// batch of nothing. It returns when each task's last message of that was.
func history(ctx context.Context, runners []*runner, o exec.LogOptions, out *logBatcher) (map[string]time.Time, error) {
	last := map[string]time.Time{}
	o.Follow = false
	var sources []logSource
	for _, r := range runners {
		if o.Tail == 0 {
			break
		}
		t, _ := r.snapshot()
		sources = append(sources, func(ctx context.Context, emit func(*swarmpb.LogMessage) error) error {
			return r.logs(ctx, t, o, emit)
		})
	}
	err := swarmpb.MergeLogs(ctx, sources, func(m *swarmpb.LogMessage) error {
		if m.GetStream() == swarmpb.LogStream_LOG_STREAM_UNKNOWN {
			return nil // those who follow are told again
		}
		last[m.GetContext().GetTaskId()] = m.GetTimestamp().AsTime()
		return out.put(m)
	})
	if err == nil {
		err = out.flush()
	}
	if err == nil {
		err = out.send(nil)
	}
	return last, err
}

// rest is how to follow a task of which there is nothing more to say up to last.
func (r *runner) rest(o exec.LogOptions, last time.Time) exec.LogOptions {
	t, _ := r.snapshot()
	switch {
	case !last.IsZero():
		o.Since, o.Tail = last.Add(1), -1
	case api.Rank(t.Status.State) < api.Rank(swarm.TaskStateStarting):
		o.Tail = -1
	}
	return o
}
