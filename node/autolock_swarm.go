package node

import (
	"context"
	"errors"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

const (
	firstLock = 200 * time.Millisecond
	maxLock   = time.Minute
	// lockTimeout bounds how long an update waits for this manager's own files to
	// be encrypted anew.
	lockTimeout = 10 * time.Second
)

// keepLocked has this manager's files encrypted with the swarm's unlock key, and
// anew when that changes. What fails is tried again.
func (p *managerPart) keepLocked(ctx context.Context) error {
	pause := firstLock
	for ctx.Err() == nil {
		view, w := p.store.Watch(store.KindCluster)
		err := p.lock(ctx, view)
		wait, cancel := context.WithCancel(ctx)
		if err != nil && ctx.Err() == nil {
			p.log.Error("this manager's files can't be encrypted with the swarm's unlock key; will try again", "err", err, "retry", pause)
			cancel()
			wait, cancel = context.WithTimeout(ctx, pause)
			pause = min(2*pause, maxLock)
		} else {
			pause = firstLock
		}
		_, err = w.Next(wait)
		cancel()
		w.Close()
		if err != nil && !errors.Is(err, store.ErrOverflow) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return nil
}

func (p *managerPart) lock(ctx context.Context, view *store.View) error {
	for c := range store.List[*api.Cluster](view) {
		return p.vault.lock(c.UnlockKey, func(s raftnode.Sealer) error { return p.raft.Reseal(ctx, s) })
	}
	return nil
}

// SwarmUpdate changes the swarm's spec, and its tokens.
func (s *swarmNode) SwarmUpdate(ctx context.Context, version uint64, spec *swarm.Spec, f dockerapi.SwarmUpdateFlags) error {
	p, err := s.leading()
	if err != nil {
		return err
	}
	err = p.control.SwarmUpdate(ctx, version, spec, control.Rotations{
		WorkerToken: f.RotateWorkerToken, ManagerToken: f.RotateManagerToken, UnlockKey: f.RotateManagerUnlockKey, NetworkKeys: f.RotateNetworkKeys,
	})
	if err != nil {
		return p.explain(err)
	}
	p.whenLocked(ctx)
	return nil
}

// whenLocked waits until this manager's files are encrypted with the swarm's
// unlock key: one who was told so may pull the plug. Other managers, and this one
// after a while, do it in their own time.
func (p *managerPart) whenLocked(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for c := range store.List[*api.Cluster](p.store.View()) {
		for {
			done, changed := p.vault.is(c.UnlockKey)
			if done {
				return
			}
			select {
			case <-changed:
			case <-p.done:
				return
			case <-ctx.Done():
				p.log.Warn("this manager's files are not encrypted anew yet")
				return
			}
		}
	}
}

// SwarmUnlockKey returns the key that opens locked managers; empty without
// autolock.
func (s *swarmNode) SwarmUnlockKey(ctx context.Context) (string, error) {
	p, err := s.leading()
	if err != nil {
		return "", err
	}
	return p.control.UnlockKey(ctx)
}
