package control

import (
	"context"
	"reflect"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/netkeys"
	"github.com/legion-swarm/legion/store"
)

// External speaks with external CAs; urls are those that sign for the root.
// Package manager/issuer implements it.
type External interface {
	// Check reports whether one answers with a certificate of the root.
	Check(ctx context.Context, urls []string, root *ca.Root) error
	// CrossSign has one of them sign the next root's certificate.
	CrossSign(ctx context.Context, urls []string, root, next *ca.Root) ([]byte, error)
}

// Rotations are what an update of the swarm replaces by something new.
type Rotations struct{ WorkerToken, ManagerToken, UnlockKey, NetworkKeys bool }

func errNoSwarm() error {
	return api.Errorf(api.Unavailable, "this manager does not know the swarm yet; try again")
}

func (c *Control) cluster(r store.Reader) (*api.Cluster, error) {
	for o := range store.List[*api.Cluster](r) {
		return o, nil
	}
	return nil, errNoSwarm()
}

// SwarmInspect returns the swarm, without what is secret in its spec.
func (c *Control) SwarmInspect(context.Context) (*swarm.Swarm, error) {
	o, err := c.cluster(c.cfg.Store.View())
	if err != nil {
		return nil, err
	}
	s := &swarm.Swarm{ClusterInfo: o.ClusterInfo, JoinTokens: o.JoinTokens}
	// The certificate too: one who updates with it, but without the key, would
	// demand that the key be forgotten.
	s.Spec.CAConfig.SigningCACert, s.Spec.CAConfig.SigningCAKey = "", ""
	return s, nil
}

// UnlockKey returns the key that opens locked managers, as users see it; empty
// when the swarm has no autolock.
func (c *Control) UnlockKey(context.Context) (string, error) {
	o, err := c.cluster(c.cfg.Store.View())
	if err != nil {
		return "", err
	}
	return ca.FormatUnlockKey(o.UnlockKey), nil
}

// updateTries is how often an update is planned again because the swarm was
// changed meanwhile.
const updateTries = 5

// SwarmUpdate changes the swarm's spec, and rotates what is asked. A changed CA
// configuration may begin the rotation of the root, which the leader carries out.
func (c *Control) SwarmUpdate(ctx context.Context, version uint64, spec *swarm.Spec, rotate Rotations) error {
	base, err := c.cluster(c.cfg.Store.View())
	if err != nil {
		return err
	}
	for range updateTries {
		// What takes long, or asks others, is done before the transaction.
		n, err := c.updated(ctx, base, spec, rotate, c.cfg.Store.Now())
		if err != nil {
			return err
		}
		stale := false
		_, err = c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
			o := store.Get[*api.Cluster](tx, base.ID)
			if o == nil {
				return errNoSwarm()
			}
			if stale = o.Version.Index != base.Version.Index && o.Version.Index == version; stale {
				base = o
				return nil
			}
			u := *n
			u.Version.Index = version
			return store.Put(tx, &u)
		})
		if err != nil || !stale {
			return err
		}
	}
	return api.Errorf(api.Conflict, "the swarm is being changed by others; try again")
}

// updated returns the cluster as an update makes it.
func (c *Control) updated(ctx context.Context, o *api.Cluster, spec *swarm.Spec, rotate Rotations, now time.Time) (*api.Cluster, error) {
	n := *o
	n.Spec = merged(&o.Spec, spec)
	if err := CheckSpec(&n.Spec); err != nil {
		return nil, err
	}
	if rotate.UnlockKey && !n.Spec.EncryptionConfig.AutoLockManagers {
		return nil, invalid("cannot rotate the unlock key because autolock is not turned on")
	}
	n.UnlockKey = unlockKey(o.UnlockKey, n.Spec.EncryptionConfig.AutoLockManagers, rotate.UnlockKey)
	if err := c.updateRoot(ctx, o, &n, &spec.CAConfig, now); err != nil {
		return nil, err
	}
	root, err := ca.ParseRoot(n.RootCA.Cert, nil)
	if err != nil {
		return nil, err
	}
	if rotate.WorkerToken {
		n.JoinTokens.Worker = ca.NewToken(root)
	}
	if rotate.ManagerToken {
		n.JoinTokens.Manager = ca.NewToken(root)
	}
	if rotate.NetworkKeys {
		if len(n.NetworkKeys.Keys) == 0 {
			return nil, invalid("there are no keys of encrypted networks to replace: no network of the swarm is encrypted")
		}
		n.NetworkKeys.Replace = netkeys.Replaced
	}
	return &n, nil
}

// unlockKey returns the key to be: none without autolock, and a new one when
// there is none yet or another one is asked for.
func unlockKey(old []byte, autolock, rotate bool) []byte {
	switch {
	case !autolock:
		return nil
	case len(old) == 0 || rotate:
		return ca.NewUnlockKey()
	}
	return old
}

// updateRoot does to n's roots what the configuration asks.
func (c *Control) updateRoot(ctx context.Context, o, n *api.Cluster, cfg *swarm.CAConfig, now time.Time) error {
	change, err := ca.Settle(&o.RootCA, cfg, now)
	if err != nil {
		return err
	}
	next := change.Root
	if change.Next != nil {
		if next, err = c.begin(ctx, o, n, change, now); err != nil {
			return err
		}
	}
	same := string(ca.Desired(next)) == string(ca.Desired(&o.RootCA)) && reflect.DeepEqual(o.Spec.CAConfig.ExternalCAs, cfg.ExternalCAs)
	// One that does not answer would leave the swarm without anybody who can sign. Where
	// the swarm has the key it is taken unasked, as by Docker.
	if change.External && (!same || cfg.SigningCACert != "") {
		if err := c.checkExternal(ctx, next, cfg); err != nil {
			return err
		}
	}
	n.RootCA, n.RootRotationInProgress = *next, ca.Rotating(next)
	n.TLSInfo, err = ca.TLSInfo(next)
	return err
}

// begin begins a rotation: the present root vouches for the next.
func (c *Control) begin(ctx context.Context, o, n *api.Cluster, change ca.Change, now time.Time) (*api.RootCA, error) {
	root, err := ca.ParseRoot(o.RootCA.Cert, o.RootCA.Key)
	if err != nil {
		return nil, err
	}
	var cross []byte
	if root.CanSign() {
		cross, err = root.CrossSign(change.Next, now)
	} else {
		// The update may take the present root's external CAs away.
		all := slices.Concat(n.Spec.CAConfig.ExternalCAs, o.Spec.CAConfig.ExternalCAs)
		cross, err = c.crossSign(ctx, ca.External(all, o.RootCA.Cert, o.RootCA.Cert), root, change.Next)
	}
	if err != nil {
		return nil, err
	}
	return ca.Begin(change.Root, change.Next, cross, now)
}

func (c *Control) crossSign(ctx context.Context, urls []string, root, next *ca.Root) ([]byte, error) {
	if c.cfg.External == nil || len(urls) == 0 {
		return nil, invalid("the present root CA's key is not in the swarm, and no external CA has it: give its certificate and key with --ca-cert and --ca-key first")
	}
	return c.cfg.External.CrossSign(ctx, urls, root, next)
}

func (c *Control) checkExternal(ctx context.Context, r *api.RootCA, cfg *swarm.CAConfig) error {
	urls := ca.External(cfg.ExternalCAs, ca.Desired(r), r.Cert)
	if len(urls) == 0 {
		return invalid("there must be at least one valid, reachable external CA corresponding to the CA certificate: the swarm does not have its key")
	}
	if c.cfg.External == nil {
		return invalid("this manager does not speak with external CAs")
	}
	root, err := ca.ParseRoot(ca.Desired(r), nil)
	if err != nil {
		return err
	}
	return c.cfg.External.Check(ctx, urls, root)
}

// refusedUntil returns when a node that is removed can have no certificate any
// more that is good.
func refusedUntil(c *api.Cluster, n *api.Node, now time.Time) time.Time {
	until := now.Add(max(ca.DefaultExpiry, c.Spec.CAConfig.NodeCertExpiry))
	if leaf, err := ca.ParseLeaf(n.Certificate.Cert); err == nil && leaf.NotAfter.After(until) {
		until = leaf.NotAfter
	}
	return until
}
