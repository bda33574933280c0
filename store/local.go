package store

import (
	"context"
	"sync"
)

// Local is a log of one store without a disk: what is proposed is applied at
// once. For tests and simulations.
type Local struct {
	mu    sync.Mutex
	store *Store
	index uint64
}

var _ Proposer = (*Local)(nil)

// NewLocal returns an empty store whose updates go to a log in memory.
func NewLocal(c Config) (*Store, error) {
	l := &Local{}
	c.Proposer = l
	s, err := New(c)
	l.store = s
	return s, err
}

// Propose applies the entry.
func (l *Local) Propose(_ context.Context, data []byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	result, fatal := l.store.Apply(l.index, data)
	if fatal != nil {
		return 0, fatal
	}
	return l.index, result
}
