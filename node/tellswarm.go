package node

import (
	"context"
	"errors"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/api"
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
	// What is restored at the start is no event.
	select {
	case <-p.founded:
	case <-ctx.Done():
		return nil
	}
	t := &teller{store: p.store, publish: n.engine.Publish}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.objects(ctx) })
	g.Go(func() error { return t.managers(ctx, p) })
	_ = g.Wait() // it ends with ctx
	return nil
}

// teller makes events of a store's changes. It tells each change once: when it
// was too slow for the store's watcher, it finds out what has changed meanwhile.
type teller struct {
	store   *store.Store
	publish func(events.Message)

	known map[string]any // what was told of, by kind and id
}

// objects tells of services, nodes, networks, secrets and configs until ctx ends.
func (t *teller) objects(ctx context.Context) error {
	for {
		view, w := t.store.Watch(store.KindService, store.KindNode, store.KindNetwork, store.KindSecret, store.KindConfig)
		t.catchUp(view)
		err := t.follow(ctx, w)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (t *teller) follow(ctx context.Context, w *store.Watcher) error {
	for {
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for i := range changes {
			c := &changes[i]
			t.say(key(c.Kind, c.ID), c.Old, c.New)
		}
	}
}

// say tells of a change. Either of before and after may be nil.
func (t *teller) say(key string, before, after any) {
	if after == nil {
		delete(t.known, key)
	} else {
		t.known[key] = after
	}
	if m, ok := swarmEvent(before, after, time.Now()); ok {
		t.publish(m)
	}
}

func key(k store.Kind, id string) string { return strconv.Itoa(int(k)) + "/" + id }

// catchUp tells of what has changed since the last event; the first time of
// nothing.
func (t *teller) catchUp(view *store.View) {
	now := map[string]any{}
	collect(now, view, store.KindService, func(o *api.Service) string { return o.ID })
	collect(now, view, store.KindNode, func(o *api.Node) string { return o.ID })
	collect(now, view, store.KindNetwork, func(o *api.Network) string { return o.ID })
	collect(now, view, store.KindSecret, func(o *api.Secret) string { return o.ID })
	collect(now, view, store.KindConfig, func(o *api.Config) string { return o.ID })
	if t.known == nil {
		t.known = now
		return
	}
	for _, k := range slices.Sorted(maps.Keys(t.known)) {
		if now[k] == nil {
			t.say(k, t.known[k], nil)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if before := t.known[k]; before != now[k] {
			t.say(k, before, now[k])
		}
	}
}

func collect[T api.Object](into map[string]any, view *store.View, k store.Kind, id func(T) string) {
	for o := range store.List[T](view) {
		into[key(k, id(o))] = o
	}
}

// managers tells which managers lead and can be reached, as it looks from here,
// until ctx ends. That is not in the store.
func (t *teller) managers(ctx context.Context, p *managerPart) error {
	var known map[string]swarm.ManagerStatus
	for {
		leaders, links := p.raft.Changed(), p.mesh.Changed()
		now := map[string]swarm.ManagerStatus{}
		for n := range store.List[*api.Node](t.store.View()) {
			if n.RaftID == 0 || n.Role != swarm.NodeRoleManager {
				continue
			}
			status := *p.managerStatus(n)
			now[n.ID] = status
			if old, ok := known[n.ID]; ok {
				if m, ok := managerEvent(n, old, status, time.Now()); ok {
					t.publish(m)
				}
			}
		}
		known = now
		select {
		case <-leaders:
		case <-links:
		case <-ctx.Done():
			return ctx.Err()
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
