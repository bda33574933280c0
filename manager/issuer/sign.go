package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
)

const (
	maxSigning  = 8 // requests to external CAs at once
	firstRetry  = time.Second
	maxRetry    = time.Minute
	signTimeout = 20 * time.Second
)

// Sign returns the node with its pending request settled: issued, or failed with
// the reason. A node without pending request is returned as it is, and so is any
// node whose certificate is an external CA's to sign.
func Sign(c *api.Cluster, n *api.Node, now time.Time) *api.Node {
	if settled(n) || len(external(c)) > 0 {
		return n
	}
	root, err := ca.Signer(&c.RootCA)
	if err != nil {
		return settle(c, n, nil, err)
	}
	if !root.CanSign() {
		return n
	}
	cert, err := root.Issue(n.Certificate.CSR, identity(c, n), c.Spec.CAConfig.NodeCertExpiry, now)
	return settle(c, n, cert, err)
}

func identity(c *api.Cluster, n *api.Node) ca.Identity {
	return ca.Identity{NodeID: n.ID, Role: n.Certificate.Role, Cluster: c.ID}
}

// external returns the addresses of the external CAs that sign now.
func external(c *api.Cluster) []string {
	return ca.External(c.Spec.CAConfig.ExternalCAs, ca.Desired(&c.RootCA), c.RootCA.Cert)
}

// settle returns the node with the outcome of its request. A node that is away is
// shown with the certificate that waits for it.
func settle(c *api.Cluster, n *api.Node, cert []byte, err error) *api.Node {
	s := *n
	if err == nil && s.Certificate.Waiting {
		s.Description.TLSInfo, err = shown(c)
	}
	if err != nil {
		s.Certificate.State, s.Certificate.Err = api.CertificateFailed, err.Error()
		return &s
	}
	s.Certificate.State, s.Certificate.Err, s.Certificate.Cert = api.CertificateIssued, "", cert
	return &s
}

// waits returns the node with the reason why its request is not settled yet.
func waits(n *api.Node, why string) *api.Node {
	if n.Certificate.Err == why {
		return n
	}
	s := *n
	s.Certificate.Err = why
	return &s
}

// shown is what is shown of a node that has, and trusts, what the swarm desires.
func shown(c *api.Cluster) (swarm.TLSInfo, error) {
	info, err := ca.TLSInfo(&c.RootCA)
	info.TrustRoot = string(ca.Desired(&c.RootCA))
	return info, err
}

// Run signs, for one leadership epoch, the requests that wait in the store. It
// returns when ctx ends.
func (i *Issuer) Run(ctx context.Context) error {
	for {
		err := i.signAll(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

// signing is what waits for a signature.
type signing struct {
	*Issuer
	waiting map[string]*attempt
	busy    int
	done    chan outcome
}

type attempt struct {
	busy  bool
	more  bool      // it has asked again while busy
	at    time.Time // not before
	fails int
}

type outcome struct {
	id    string
	again bool  // it still waits
	err   error // the store's
}

func (i *Issuer) signAll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	view, w := i.cfg.Store.Watch(store.KindNode, store.KindCluster)
	changes := follow(ctx, w)
	s := &signing{Issuer: i, waiting: map[string]*attempt{}, done: make(chan outcome)}
	defer func() {
		cancel()
		for range changes { //nolint:revive // until it is closed
		}
		for ; s.busy > 0; s.busy-- {
			<-s.done
		}
	}()
	for n := range store.List[*api.Node](view) {
		s.see(n)
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(s.begin(ctx, time.Now()))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case o := <-s.done:
			if err := s.end(o, time.Now()); err != nil {
				return err
			}
		case c := <-changes:
			if c.err != nil {
				return c.err
			}
			s.changed(c.list)
		}
	}
}

// see notes whether a node waits.
func (s *signing) see(n *api.Node) {
	a := s.waiting[n.ID]
	switch {
	case a != nil && a.busy:
		a.more = !settled(n)
	case settled(n):
		delete(s.waiting, n.ID)
	case a == nil:
		s.waiting[n.ID] = &attempt{}
	}
}

func (s *signing) changed(list []store.Change) {
	for _, c := range list {
		switch n := c.New.(type) {
		case *api.Node:
			s.see(n)
		case *api.Cluster: // there may be another signer
			for _, a := range s.waiting {
				a.at = time.Time{}
			}
		}
	}
}

// begin starts what is due, and returns when to look again.
func (s *signing) begin(ctx context.Context, now time.Time) time.Duration {
	next := time.Hour
	for id, a := range s.waiting {
		if a.busy {
			continue
		}
		if left := a.at.Sub(now); left > 0 {
			next = min(next, left)
			continue
		}
		if s.busy == maxSigning {
			return next // one of them ends
		}
		a.busy = true
		s.busy++
		go func() {
			again, err := s.signOne(ctx, id)
			s.done <- outcome{id, again, err}
		}()
	}
	return next
}

func (s *signing) end(o outcome, now time.Time) error {
	s.busy--
	a := s.waiting[o.id]
	switch {
	case o.err != nil:
		return o.err
	case !o.again && a.more:
		*a = attempt{}
	case !o.again:
		delete(s.waiting, o.id)
	default:
		a.busy, a.at = false, now.Add(min(firstRetry<<min(a.fails, 10), maxRetry))
		a.fails++
	}
	return nil
}

// signOne settles a node's request; again if nobody can sign it now.
func (i *Issuer) signOne(ctx context.Context, id string) (again bool, err error) {
	view := i.cfg.Store.View()
	c, err := cluster(view)
	if err != nil {
		return true, nil
	}
	n := store.Get[*api.Node](view, id)
	if n == nil || settled(n) {
		return false, nil
	}
	sign := func(c *api.Cluster, n *api.Node) *api.Node { return Sign(c, n, i.cfg.Store.Now()) }
	if len(external(c)) > 0 {
		cert, err := i.signOutside(ctx, c, n)
		if ctx.Err() != nil {
			return true, nil
		}
		if api.Is(err, api.Unavailable) {
			i.cfg.Log.Warn("the external CA does not sign; will try again", "node", id, "err", err)
			_, err := i.write(ctx, id, func(_ *api.Cluster, n *api.Node) *api.Node { return waits(n, err.Error()) })
			return true, err
		}
		asked := n
		sign = func(c *api.Cluster, n *api.Node) *api.Node {
			if string(n.Certificate.CSR) != string(asked.Certificate.CSR) || n.Certificate.Role != asked.Certificate.Role {
				return n // it asks for something else by now
			}
			return settle(c, n, cert, err)
		}
	}
	return i.write(ctx, id, sign)
}

func (i *Issuer) write(ctx context.Context, id string, sign func(*api.Cluster, *api.Node) *api.Node) (again bool, err error) {
	_, err = i.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		again = false
		c, err := cluster(tx)
		if err != nil {
			return err
		}
		n := store.Get[*api.Node](tx, id)
		if n == nil || settled(n) {
			return nil
		}
		s := sign(c, n)
		if again = s == n; again {
			return nil
		}
		return store.Put(tx, s)
	})
	return again, err
}

func (i *Issuer) signOutside(ctx context.Context, c *api.Cluster, n *api.Node) ([]byte, error) {
	if i.cfg.External == nil {
		return nil, api.Errorf(api.Unavailable, "this manager does not speak with external CAs")
	}
	root, err := ca.Signer(&c.RootCA)
	if err != nil {
		return nil, err
	}
	return i.cfg.External.Sign(ctx, external(c), root, n.Certificate.CSR, identity(c, n))
}

// changes is what a watcher said.
type changes struct {
	list []store.Change
	err  error
}

// follow makes a channel of a watcher, closed after an error. It ends with ctx,
// and closes the watcher.
func follow(ctx context.Context, w *store.Watcher) <-chan changes {
	out := make(chan changes)
	go func() {
		defer close(out)
		defer w.Close()
		for {
			list, err := w.Next(ctx)
			select {
			case out <- changes{list, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}
