package dispatcher

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// listenWait is how long another manager waits for a node that it serves to
// listen: a node that has just opened its session does so in a moment.
const listenWait = 2 * time.Second

// elsewhere returns the other manager that serves a node; nil when there is none
// that can be asked.
func (b *LogBroker) elsewhere(node string) *api.Node {
	view := b.store.View()
	n := store.Get[*api.Node](view, node)
	if b.dial == nil || n == nil || n.Status.State == swarm.NodeStateDown || n.Session.Manager == b.self {
		return nil
	}
	m := store.Get[*api.Node](view, n.Session.Manager)
	if m == nil || m.Role != swarm.NodeRoleManager || m.ManagerAddr == "" {
		return nil
	}
	return m
}

// relay fills a feed through the manager that serves the node, until the feed
// ends.
func (s *subscription) relay(f *feed, addr string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.relays.Go(func() {
		select {
		case <-f.ended:
			cancel()
		case <-ctx.Done():
		}
	})
	if err := s.fetch(ctx, f, addr); err != nil {
		f.end("through its manager " + addr + ": " + err.Error())
	} else {
		f.end("")
	}
}

func (s *subscription) fetch(ctx context.Context, f *feed, addr string) error {
	conn, err := s.b.dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	stream, err := swarmpb.NewLogsClient(conn).SubscribeLogs(ctx, &swarmpb.SubscribeLogsRequest{
		Selector: s.selector.wire(), Options: f.options, NodeId: f.node,
	})
	if err != nil {
		return err
	}
	if _, err := stream.Header(); err != nil { // the manager has taken it
		return err
	}
	if !f.take() {
		return nil
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := pour(ctx, f, m.GetMessages()); err != nil {
			return err
		}
	}
}

// await returns when the node listens, or when it takes too long.
func (b *LogBroker) await(ctx context.Context, node string) {
	t := time.NewTimer(listenWait)
	defer t.Stop()
	for {
		b.mu.Lock()
		l, came := b.listeners[node], b.came
		b.mu.Unlock()
		if l != nil {
			return
		}
		select {
		case <-came:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// moved has those that follow a node's logs ask for them through the manager that
// serves it now.
func (b *LogBroker) moved(node, manager string) {
	var followers []*subscription
	b.mu.Lock()
	for _, s := range b.subs {
		s.endFeed(node, func(f *feed) bool { return f.via != manager })
		if s.options.Follow && s.options.only == "" {
			followers = append(followers, s)
		}
	}
	b.mu.Unlock()
	for _, s := range followers {
		s.back(node)
	}
}
