package issuer

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
)

const (
	// markChunk bounds the nodes that are marked in one transaction.
	markChunk = 256
	// stepPause is how long changes are gathered before the next step.
	stepPause = 20 * time.Millisecond
)

// Rotate drives, for one leadership epoch, the rotation of the swarm's root: it
// asks nodes for new requests, and finishes when all have their certificate from
// the new root. It returns when ctx ends.
func (i *Issuer) Rotate(ctx context.Context) error {
	for {
		err := i.rotate(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (i *Issuer) rotate(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	_, w := i.cfg.Store.Watch(store.KindNode, store.KindCluster)
	changes := follow(ctx, w)
	defer func() {
		cancel()
		for range changes { //nolint:revive // until it is closed
		}
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		again, err := i.step(ctx)
		if err != nil {
			return err
		}
		timer.Reset(again)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case c := <-changes:
			if c.err != nil {
				return c.err
			}
			pause(ctx, stepPause)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// step does what is due, and returns when to look again though nothing changed.
func (i *Issuer) step(ctx context.Context) (time.Duration, error) {
	view := i.cfg.Store.View()
	c, err := cluster(view)
	if err != nil {
		return time.Hour, nil
	}
	now := i.cfg.Store.Now()
	s, err := ca.Next(&c.RootCA, slices.Collect(store.List[*api.Node](view)), now)
	if err != nil {
		i.cfg.Log.Error("the swarm's root CA can't be read", "err", err)
		return time.Hour, nil
	}
	for ids := range slices.Chunk(s.Renew, markChunk) {
		i.cfg.Log.Info("nodes are asked to renew their certificates", "nodes", len(ids), "left", s.Left)
		if err := i.mark(ctx, ids); err != nil {
			return 0, err
		}
	}
	for ids := range slices.Chunk(s.Absent, markChunk) {
		i.cfg.Log.Info("certificates are signed for nodes that are away", "nodes", len(ids), "left", s.Left)
		if err := i.signAbsent(ctx, c, ids); err != nil {
			return 0, err
		}
	}
	if s.Done {
		if err := i.finish(ctx, c); err != nil {
			return 0, err
		}
	}
	if s.Again.IsZero() {
		return time.Hour, nil
	}
	return max(s.Again.Sub(now), time.Millisecond), nil
}

// mark asks nodes for new requests.
func (i *Issuer) mark(ctx context.Context, ids []string) error {
	_, err := i.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			old := store.Get[*api.Node](tx, id)
			if old == nil || !settled(old) {
				continue
			}
			n := *old
			n.Certificate.State, n.Certificate.Err = api.CertificateRotate, ""
			if err := store.Put(tx, &n); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// signAbsent signs for nodes that are away, or has an external CA do that. One that
// comes back meanwhile is left alone.
func (i *Issuer) signAbsent(ctx context.Context, c *api.Cluster, ids []string) error {
	_, err := i.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		c := store.Get[*api.Cluster](tx, c.ID)
		if c == nil {
			return nil
		}
		for _, id := range ids {
			old := store.Get[*api.Node](tx, id)
			if old == nil || !settled(old) || old.Status.State == swarm.NodeStateReady {
				continue
			}
			n := *old
			n.Certificate = api.Certificate{Role: waitingRole(old), CSR: old.Certificate.CSR, State: api.CertificateRenew, CN: id, Waiting: true}
			if err := store.Put(tx, Sign(c, &n, i.cfg.Store.Now())); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// waitingRole is the role that a certificate is signed for without its node: never
// more than the node has, and no manager's if it is none any more.
func waitingRole(n *api.Node) swarm.NodeRole {
	if n.Role == swarm.NodeRoleManager {
		return n.Certificate.Role
	}
	return n.Role
}

// finish ends the rotation that c shows, unless the swarm is changed meanwhile.
func (i *Issuer) finish(ctx context.Context, c *api.Cluster) error {
	var digest string
	_, err := i.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Cluster](tx, c.ID)
		if old == nil || old.Version.Index != c.Version.Index {
			return nil // the next step sees it
		}
		n, err := finished(old)
		if err != nil {
			return err
		}
		digest = n.RootCA.Digest
		return store.Put(tx, n)
	})
	if err == nil && digest != "" {
		i.cfg.Log.Info("the root CA's rotation is done: every node has a certificate of the new root, or one that waits for it", "digest", digest)
	}
	return err
}

// finished returns the cluster with the next root in place of the present one.
// Its tokens name the new root.
func finished(c *api.Cluster) (*api.Cluster, error) {
	r, err := ca.Finish(&c.RootCA)
	if err != nil {
		return nil, err
	}
	root, err := ca.ParseRoot(r.Cert, nil)
	if err != nil {
		return nil, err
	}
	n := *c
	n.RootCA, n.RootRotationInProgress = *r, false
	n.JoinTokens = swarm.JoinTokens{Worker: ca.NewToken(root), Manager: ca.NewToken(root)}
	n.TLSInfo, err = ca.TLSInfo(r)
	return &n, err
}
