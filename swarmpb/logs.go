package swarmpb

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// MergeLogs runs all sources at once and passes their messages to emit, in order
// of their times as far as each source is in order itself. It returns when all
// sources have ended, with the first error of a source or of emit.
func MergeLogs(ctx context.Context, sources []func(context.Context, func(*LogMessage) error) error, emit func(*LogMessage) error) error {
	g, ctx := errgroup.WithContext(ctx)
	heads := make([]chan *LogMessage, len(sources))
	for i, source := range sources {
		lines := make(chan *LogMessage, 64)
		heads[i] = lines
		g.Go(func() error {
			defer close(lines)
			return source(ctx, func(m *LogMessage) error {
				select {
				case lines <- m:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}
	g.Go(func() error { return merge(ctx, heads, emit) })
	return g.Wait()
}

func merge(ctx context.Context, heads []chan *LogMessage, emit func(*LogMessage) error) error {
	next := make([]*LogMessage, len(heads))
	for i := range heads {
		next[i] = <-heads[i]
	}
	for ctx.Err() == nil {
		oldest := -1
		for i, m := range next {
			if m != nil && (oldest < 0 || before(m, next[oldest])) {
				oldest = i
			}
		}
		if oldest < 0 {
			return nil
		}
		if err := emit(next[oldest]); err != nil {
			return err
		}
		next[oldest] = <-heads[oldest]
	}
	return ctx.Err()
}

func before(a, b *LogMessage) bool {
	x, y := a.GetTimestamp(), b.GetTimestamp()
	if x.GetSeconds() != y.GetSeconds() {
		return x.GetSeconds() < y.GetSeconds()
	}
	return x.GetNanos() < y.GetNanos()
}
