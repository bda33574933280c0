package swarmpb

import (
	"container/heap"
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
	next := make(oldestFirst, 0, len(heads))
	for i, lines := range heads {
		if m := <-lines; m != nil {
			next = append(next, head{m, i, lines})
		}
	}
	heap.Init(&next)
	for len(next) > 0 && ctx.Err() == nil {
		if err := emit(next[0].m); err != nil {
			return err
		}
		if next[0].m = <-next[0].more; next[0].m != nil {
			heap.Fix(&next, 0)
		} else {
			heap.Pop(&next)
		}
	}
	return ctx.Err()
}

// head is the next message of a source.
type head struct {
	m      *LogMessage
	source int
	more   <-chan *LogMessage
}

// oldestFirst is a heap; of messages of one time, the first source's is first.
type oldestFirst []head

func (h oldestFirst) Len() int      { return len(h) }
func (h oldestFirst) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *oldestFirst) Push(x any)   { *h = append(*h, x.(head)) }

func (h *oldestFirst) Pop() any {
	last := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = head{}
	*h = (*h)[:len(*h)-1]
	return last
}

func (h oldestFirst) Less(i, j int) bool {
	x, y := h[i].m.GetTimestamp(), h[j].m.GetTimestamp()
	if x.GetSeconds() != y.GetSeconds() {
		return x.GetSeconds() < y.GetSeconds()
	}
	if x.GetNanos() != y.GetNanos() {
		return x.GetNanos() < y.GetNanos()
	}
	return h[i].source < h[j].source
}
