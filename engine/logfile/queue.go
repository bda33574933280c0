package logfile

import "sync"

// queue holds messages for a disk that may be slow. When it is full, new ones
// are dropped, as Docker's mode=non-blocking does.
type queue struct {
	mu     sync.Mutex
	ms     []Message
	size   int64
	closed bool
	wake   *sync.Cond

	max  int64
	done chan struct{}
}

func newQueue(limit int64) *queue {
	q := &queue{max: limit, done: make(chan struct{})}
	q.wake = sync.NewCond(&q.mu)
	return q
}

func (q *queue) put(ms []Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range ms {
		if q.size+int64(len(m.Line)) > q.max && len(q.ms) > 0 || q.closed {
			continue
		}
		m.Line = append([]byte(nil), m.Line...)
		q.ms = append(q.ms, m)
		q.size += int64(len(m.Line))
	}
	q.wake.Signal()
}

// run writes until close. What can't be written is dropped.
func (q *queue) run(write func([]Message) error) {
	defer close(q.done)
	for {
		q.mu.Lock()
		for len(q.ms) == 0 && !q.closed {
			q.wake.Wait()
		}
		ms := q.ms
		q.ms, q.size = nil, 0
		q.mu.Unlock()
		if len(ms) == 0 {
			return
		}
		_ = write(ms)
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.wake.Signal()
	q.mu.Unlock()
	<-q.done
}
