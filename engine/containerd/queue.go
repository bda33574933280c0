package containerd

import (
	"context"
	"sync"
)

// queue keeps events in order until a reader took them. It holds at most what
// containers and execs there are, so it has no bound of its own.
type queue[T any] struct {
	mu    sync.Mutex
	items []T

	wake chan struct{} // capacity 1
}

func newQueue[T any]() *queue[T] { return &queue[T]{wake: make(chan struct{}, 1)} }

func (q *queue[T]) put(item T) {
	q.mu.Lock()
	q.items = append(q.items, item)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes all items.
func (q *queue[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}

// putBack returns items that were not delivered to the front.
func (q *queue[T]) putBack(items []T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(items, q.items...)
}

// deliver sends items to the returned channel until ctx ends, and closes it.
// What was not received stays for the next reader.
func (q *queue[T]) deliver(ctx context.Context) <-chan T {
	out := make(chan T)
	go func() {
		defer close(out)
		for {
			items := q.take()
			for i, item := range items {
				select {
				case out <- item:
				case <-ctx.Done():
					q.putBack(items[i:])
					return
				}
			}
			select {
			case <-q.wake:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
