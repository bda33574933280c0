package dispatcher

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
)

// troubled is a log that takes as many entries as it is told to, then refuses some.
type troubled struct {
	mu            sync.Mutex
	store         *store.Store
	index         uint64
	takes, refuse int
}

func (p *troubled) Propose(_ context.Context, data []byte) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.takes == 0 && p.refuse > 0 {
		p.refuse--
		return 0, api.Errorf(api.Unavailable, "the change may have come to pass")
	}
	p.takes--
	p.index++
	result, fatal := p.store.Apply(p.index, data)
	if fatal != nil {
		return 0, fatal
	}
	return p.index, result
}

// A node's state that can't be written is written later: nothing else would bring the
// node back, or have it replaced.
func TestStateOfANodeIsWrittenInTheEnd(t *testing.T) {
	for what, c := range map[string]struct {
		happens func(ctx context.Context, d *Dispatcher, s *session)
		want    swarm.NodeState
	}{
		"another manager took a node for dead that lives": {func(ctx context.Context, d *Dispatcher, s *session) {
			_ = d.setStatus(ctx, "n", s.id, func(n *api.Node) bool {
				n.Status.State = swarm.NodeStateDown
				return true
			})
		}, swarm.NodeStateReady},
		"the node dies": {func(ctx context.Context, d *Dispatcher, s *session) {
			_ = d.setStatus(ctx, "n", s.id, func(n *api.Node) bool {
				n.Status.Message = "something"
				return true
			})
			d.lose(s, api.Errorf(api.Unavailable, "its connection broke"))
		}, swarm.NodeStateDown},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := &troubled{takes: 3, refuse: 4} // the node, its session, and what happens
			s, err := store.New(store.Config{Proposer: p})
			if err != nil {
				t.Fatal(err)
			}
			p.store = s
			d, err := New(Config{
				Store: s, Node: "m", Log: slog.New(slog.DiscardHandler),
				Peer: func(context.Context) (ca.Identity, string, bool) { return ca.Identity{}, "", false },
			})
			if err != nil {
				t.Fatal(err)
			}
			update(t, s, func(tx *store.Tx) error {
				n := &api.Node{}
				n.ID = "n"
				return store.Create(tx, n)
			})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- d.Run(ctx) }()
			synctest.Wait()
			open, err := d.open("n")
			if err != nil {
				t.Fatal(err)
			}
			if err := d.register(ctx, open, nil, "10.0.0.1"); err != nil {
				t.Fatal(err)
			}
			d.mu.Lock()
			open.registered = true
			d.mu.Unlock()
			c.happens(ctx, d, open)
			time.Sleep(time.Minute)
			if n := store.Get[*api.Node](s.View(), "n"); n.Status.State != c.want || p.refuse > 0 {
				t.Errorf("%s: the node is %+v, %d writes were not tried", what, n.Status, p.refuse)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
