package network

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// setter calls Dataplane.Set, one call at a time. Who asks while one is under
// way shares the next with all others who do.
type setter struct {
	plane   Dataplane
	timeout time.Duration
	log     *slog.Logger

	mu      sync.Mutex
	running bool
	next    *round
	wg      sync.WaitGroup

	made map[string]bool // sandboxes that the last Set had; nil: there was none. Only drain's
	knew atomic.Bool     // a Set has returned: what is there is known

	building sync.Mutex  // held while a config is built and the data plane is narrowed to it
	awaited  atomic.Bool // somebody is about to take building
}

// round is one call of Set.
type round struct {
	config func() *Config // of who asked last
	done   chan struct{}
	err    error // valid once done is closed
}

// commit makes the data plane what config returns at a moment after the call.
// It returns when that is done, or when ctx ends; the change is then made all
// the same.
func (s *setter) commit(ctx context.Context, config func() *Config) error {
	s.mu.Lock()
	if s.next == nil {
		s.next = &round{done: make(chan struct{})}
	}
	r := s.next
	r.config = config
	if !s.running {
		s.running = true
		s.wg.Go(func() { s.drain(context.WithoutCancel(ctx)) })
		s.mu.Unlock()
	} else {
		s.mu.Unlock()
		s.narrow(config)
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *setter) drain(ctx context.Context) {
	for {
		s.mu.Lock()
		r := s.next
		if s.next = nil; r == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for portions, whole := 1, false; !whole; portions++ {
			var c *Config
			c, whole = s.portion(s.build(r.config), portions)
			bounded, cancel := context.WithTimeout(ctx, s.timeout)
			r.err = s.plane.Set(bounded, c)
			cancel()
			s.knew.Store(true)
		}
		if r.err != nil {
			s.log.Debug("network: set", "error", r.err)
		}
		close(r.done)
	}
}

const (
	// maxNew is how many sandboxes are made by one Set if there are more, so that
	// names and backends that change meanwhile need not wait for all.
	maxNew = 8
	// maxPortions bounds how often somebody waits for others' sandboxes.
	maxPortions = 16
)

// portion returns as much of a config as the next Set is to make, and whether that
// is all.
func (s *setter) portion(c *Config, portions int) (_ *Config, whole bool) {
	var fresh []string
	for id := range c.Sandboxes {
		if s.made != nil && !s.made[id] {
			fresh = append(fresh, id)
		}
	}
	if whole = len(fresh) <= maxNew || portions >= maxPortions; !whole {
		slices.Sort(fresh)
		c = c.Clone()
		for _, id := range fresh[maxNew:] {
			delete(c.Sandboxes, id)
		}
		maps.DeleteFunc(c.Ports, func(_ PortKey, p *Port) bool {
			return c.Sandboxes[p.Sandbox] == nil && slices.Contains(fresh, p.Sandbox)
		})
	}
	s.made = make(map[string]bool, len(c.Sandboxes))
	for id := range c.Sandboxes {
		s.made[id] = true
	}
	return c, whole
}

// build returns the config of a moment after the call. Names that it lacks are
// not answered from then on, and backends get no connections, however long the
// data plane takes for the rest.
func (s *setter) build(config func() *Config) *Config {
	s.building.Lock()
	defer s.building.Unlock()
	s.awaited.Store(false)
	c := config()
	s.plane.Narrow(c)
	return c
}

// narrow takes names and backends back while a Set is under way: now, or by somebody
// who is about to.
func (s *setter) narrow(config func() *Config) {
	if !s.awaited.Swap(true) {
		s.build(config)
	}
}

// takeBack has names and backends that config lacks, at a moment after the call,
// taken back beside whatever Set is under way. It returns when that is done, or when
// ctx ends; it is then done all the same. The rest is left to the next commit.
func (s *setter) takeBack(ctx context.Context, config func() *Config) error {
	if !s.knew.Load() { // what an earlier process left can't be narrowed
		return s.commit(ctx, config)
	}
	done := make(chan struct{})
	s.wg.Go(func() {
		defer close(done)
		s.build(config)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait returns when nothing is under way. No commit may be made any more.
func (s *setter) wait() { s.wg.Wait() }

// itemsFailed returns what of err concerns the items: their errors, or err
// itself if it is not a *SetError.
func itemsFailed(err error, items ...Item) error {
	if err == nil {
		return nil
	}
	var se *SetError
	if !errors.As(err, &se) {
		return err
	}
	var errs []error
	for _, it := range items {
		if e := se.Items[it]; e != nil {
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}
