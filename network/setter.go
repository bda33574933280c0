package network

import (
	"context"
	"errors"
	"log/slog"
	"sync"
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
}

// round is one call of Set.
type round struct {
	done chan struct{}
	err  error // valid once done is closed
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
	if !s.running {
		s.running = true
		s.wg.Go(func() { s.drain(context.WithoutCancel(ctx), config) })
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *setter) drain(ctx context.Context, config func() *Config) {
	for {
		s.mu.Lock()
		r := s.next
		if s.next = nil; r == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		bounded, cancel := context.WithTimeout(ctx, s.timeout)
		r.err = s.plane.Set(bounded, config())
		cancel()
		if r.err != nil {
			s.log.Debug("network: set", "error", r.err)
		}
		close(r.done)
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
