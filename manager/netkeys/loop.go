package netkeys

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Loop is the leader's loop.
type Loop struct {
	Store *store.Store
	Log   *slog.Logger
}

// Run blocks until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (l *Loop) follow(ctx context.Context) error {
	_, w := l.Store.Watch(store.KindNetwork, store.KindCluster)
	defer w.Close()
	for {
		wait, err := l.step(ctx)
		if err != nil {
			return err
		}
		next, cancel := ctx, context.CancelFunc(func() {})
		if wait > 0 {
			next, cancel = context.WithTimeout(ctx, wait)
		}
		_, err = w.Next(next)
		cancel()
		if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
			return err
		}
	}
}

// step makes what keys are due, and says how long nothing is.
func (l *Loop) step(ctx context.Context) (wait time.Duration, err error) {
	plan := func(r store.Reader) (was *api.Cluster, is api.NetworkKeys) {
		for c := range store.List[*api.Cluster](r) {
			is, wait = Plan(c.NetworkKeys, Needed(r), l.Store.Now(), secret)
			return c, is
		}
		return nil, is
	}
	if c, is := plan(l.Store.View()); c == nil || reflect.DeepEqual(c.NetworkKeys, is) {
		return wait, nil
	}
	var send uint32
	_, err = l.Store.Update(ctx, func(tx *store.Tx) error {
		c, is := plan(tx)
		if c == nil || reflect.DeepEqual(c.NetworkKeys, is) {
			return nil
		}
		u := *c
		u.NetworkKeys, send = is, is.Send
		return store.Put(tx, &u)
	})
	if err != nil {
		return 0, fmt.Errorf("keys of encrypted networks: %w", err)
	}
	if send != 0 {
		l.Log.Info("encrypted networks are to send with another key", "key", send)
	}
	return wait, nil
}

// secret never fails: crypto/rand ends the process rather.
func secret() (b [32]byte) {
	_, _ = rand.Read(b[:])
	return b
}
