package node

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/legion-swarm/legion/store"
)

// tellSwarm puts the swarm's changes in the node's stream of events, while the
// node is a manager.
func (n *Node) tellSwarm(ctx context.Context) error {
	for ctx.Err() == nil {
		p, changed := n.swarm.watch()
		if p != nil {
			if err := n.tell(ctx, p); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// tell passes on what happens in the manager's store until it ends.
func (n *Node) tell(ctx context.Context, p *managerPart) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		// What is restored at the start is no event.
		select {
		case <-p.founded:
		case <-ctx.Done():
			return nil
		}
		_, w := p.store.Watch(store.KindService, store.KindNode, store.KindNetwork, store.KindSecret, store.KindConfig)
		err := n.follow(ctx, w)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return nil
		}
	}
}

func (n *Node) follow(ctx context.Context, w *store.Watcher) error {
	for {
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for i := range changes {
			if m, ok := swarmEvent(changes[i].Old, changes[i].New, time.Now()); ok {
				n.engine.Publish(m)
			}
		}
	}
}

// containerdVersion is that of the library inside.
func containerdVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/containerd/containerd/v2" {
			return m.Version
		}
	}
	return ""
}
