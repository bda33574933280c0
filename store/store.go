package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legion-swarm/legion/api"
)

// Proposer puts an entry in the log. Propose returns once Apply has taken it on
// this node, with the entry's index and Apply's result; or an error that says
// that it is not known to be in the log (NotLeader, Unavailable, ctx's).
// Package raftnode implements it.
type Proposer interface {
	Propose(ctx context.Context, data []byte) (index uint64, err error)
}

// Config is what a Store needs.
type Config struct {
	// Proposer is where updates go. It may be nil until SetProposer: then Update
	// answers Unavailable.
	Proposer Proposer
	// Now is this manager's wall clock, which may be set at any time; nil: the
	// system's. It is only asked before the log.
	Now func() time.Time
	// WatchLimit bounds how many changes a watcher may have pending; 0: 100,000.
	WatchLimit int
}

const (
	defaultWatchLimit = 100_000
	maxRetryPause     = 20 * time.Millisecond
)

// Store holds a cluster's objects. All methods are safe for concurrent use;
// Apply and Restore are called by the log's owner, one after the other.
type Store struct {
	now        func() time.Time
	watchLimit int
	view       atomic.Pointer[View]
	edits      atomic.Uint64

	// mu guards all below; it is held while an entry is applied, never while one
	// is proposed.
	mu       sync.Mutex
	proposer Proposer
	refs     map[string]int // how many tasks have a spec, by specKey
	intern   intern
	watchers map[*Watcher]struct{}
}

// New returns an empty store.
func New(c Config) (*Store, error) {
	s := &Store{now: c.Now, watchLimit: c.WatchLimit, proposer: c.Proposer, watchers: map[*Watcher]struct{}{}}
	if s.now == nil {
		s.now = time.Now
	}
	if s.watchLimit == 0 {
		s.watchLimit = defaultWatchLimit
	}
	s.refs = map[string]int{}
	s.view.Store(&View{})
	return s, nil
}

// Now is this manager's wall clock, by which writes are dated: what is compared
// with stored times is taken from it. It may go back, and has no monotonic reading.
func (s *Store) Now() time.Time { return s.now().UTC().Round(0) }

// SetProposer says where updates go from now on; nil: nowhere.
func (s *Store) SetProposer(p Proposer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proposer = p
}

// View returns the newest snapshot.
func (s *Store) View() *View { return s.view.Load() }

// Update runs fn on the newest snapshot and proposes what it wrote. When it
// returns without error the change is in the log and View shows it; index is
// the entry's, and the new Version.Index of every object written (0 when fn
// wrote nothing). If what fn read was changed meanwhile, fn is run again on a
// newer snapshot, until ctx ends (Conflict); so fn must have no effect but on
// tx. fn's error is returned as it is.
//
// Unavailable and NotLeader mean that the change may or may not come to pass.
func (s *Store) Update(ctx context.Context, fn func(tx *Tx) error) (index uint64, err error) {
	pause := time.Millisecond
	catchUp, _ := ctx.Value(laggingKey{}).(func(context.Context) error)
	for {
		tx := s.begin()
		err := fn(tx)
		if catchUp != nil && (err != nil || tx.listed || len(tx.written) == 0) {
			if err := catchUp(ctx); err != nil {
				return 0, err
			}
			catchUp = nil
			continue
		}
		if err != nil {
			return 0, err
		}
		if len(tx.written) == 0 {
			return 0, nil
		}
		data, err := encode(tx)
		if err != nil {
			return 0, err
		}
		s.mu.Lock()
		p := s.proposer
		s.mu.Unlock()
		if p == nil {
			return 0, api.Errorf(api.Unavailable, "the store of the swarm is not open for writing")
		}
		proposed := waits(ctx, false)
		index, err = p.Propose(ctx, data)
		proposed()
		if !errors.Is(err, errStale) {
			return index, err
		}
		if err := wait(ctx, pause/2+rand.N(pause)); err != nil {
			return 0, api.Errorf(api.Conflict, "others kept changing the same objects; nothing was changed: %w", err)
		}
		pause = min(2*pause, maxRetryPause)
	}
}

// Lagging returns a context for Update where View may lag behind what was
// acknowledged elsewhere before the call. What a function got by id is compared when
// the entry is applied, wherever it ran, and so are names that must be unique. But
// when it listed anything, returned an error or wrote nothing, that says nothing yet:
// then catchUp is called, which returns once View does not lag, and the function is
// run again. Its error is Update's.
func Lagging(ctx context.Context, catchUp func(context.Context) error) context.Context {
	return context.WithValue(ctx, laggingKey{}, catchUp)
}

type laggingKey struct{}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (s *Store) begin() *Tx {
	return &Tx{store: s, view: s.View(), now: s.Now(), index: map[ref]int{}}
}

// encode makes the entry of a transaction. A spec goes with it unless the
// store already has it; if that is dropped before the entry is applied, the
// entry is stale and comes again.
func encode(tx *Tx) ([]byte, error) {
	e := &entry{reads: make([]read, 0, len(tx.items)), ops: make([]op, 0, len(tx.written))}
	for i := range tx.items {
		e.reads = append(e.reads, read{tx.items[i].ref, tx.items[i].base()})
	}
	size := 0
	sent := map[string]bool{}
	for _, i := range tx.written {
		c := &tx.items[i]
		if c.now == nil {
			if c.before != nil {
				e.ops = append(e.ops, op{code: opDelete, kind: c.kind, id: c.id})
			}
			continue
		}
		if t, ok := c.now.(*api.Task); ok {
			spec, err := specOp(tx.view, t, c.before, sent)
			if err != nil {
				return nil, err
			}
			if spec != nil {
				size += len(spec.body)
				e.ops = append(e.ops, *spec)
			}
		}
		body, err := encodeObject(c.now)
		if err != nil {
			return nil, fmt.Errorf("store: encode %s %s: %w", c.kind, c.id, err)
		}
		size += len(body)
		if size > maxChange {
			return nil, api.Errorf(api.ResourceExhausted, "the change is too large: more than %d MiB", maxChange>>20)
		}
		e.ops = append(e.ops, op{code: opPut, kind: c.kind, body: body})
	}
	return e.encode(), nil
}

func specOp(v *View, t *api.Task, before any, sent map[string]bool) (*op, error) {
	if was, ok := before.(*api.Task); ok && sameSpec(was, t) {
		return nil, nil
	}
	key := specKey(t)
	if sent[key] || v.tables.spec(key) != nil {
		return nil, nil
	}
	body, err := json.Marshal(t.Spec)
	if err != nil {
		return nil, fmt.Errorf("store: encode spec of task %s: %w", t.ID, err)
	}
	sent[key] = true
	return &op{code: opSpec, id: key, body: body}, nil
}

// Snapshot returns a function that writes the store as it is now; it may be
// called later and from another goroutine. See View.Snapshot.
func (s *Store) Snapshot() func(io.Writer) error { return s.View().Snapshot }
