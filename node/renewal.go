package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/swarmpb"
)

// wish is what the managers want of this node's certificate.
type wish struct {
	role swarm.NodeRole // empty: not known yet
	root []byte         // PEM that the node is to trust; empty: not known
	// rotate is what a manager said of the node when it asked for a new request;
	// nil: none did.
	rotate *api.Node
}

// renewal gets the node a new certificate before the old one expires, when its
// role changes and when the swarm's root does; and it takes over the root.
type renewal struct {
	creds *rpc.Credentials
	vault *vault
	dial  func(context.Context) (*grpc.ClientConn, string, error)
	// wanted returns what the managers want, and a channel that is closed when
	// they say something new.
	wanted func() (wish, <-chan struct{})
	// renewed is told that there is a new certificate, or another root.
	renewed func()
	// failed is told by which manager a request failed, and how: it may not take
	// this node's certificate any more, though sessions from before go on.
	failed func(addr string, err error)
	// request gets a new certificate and takes it: renew, but in tests.
	request func(context.Context) error
	log     *slog.Logger
	// now is the wall clock, which may be set at any time.
	now func() time.Time

	refused []byte // a root that is not taken over
}

const (
	renewRetry   = time.Minute
	renewTimeout = 30 * time.Second
	// renewAgain is the least time between two renewals that succeed.
	renewAgain = 10 * time.Minute
	// minRenewPause is the first pause before a role is asked for again.
	minRenewPause = 200 * time.Millisecond
	// unsignedPause is the pause before the managers are asked again whether there is a
	// certificate, once they have said why there is none.
	unsignedPause = time.Second
	// maxTimer bounds one wait: the clock may be set, and timers do not follow it.
	maxTimer = time.Hour
)

func (r *renewal) run(ctx context.Context) error {
	at := r.due(0)
	var pause time.Duration
	var rotated *api.Node // the last rotate that was done
	owed := false         // what was asked for failed
	for {
		w, changed := r.wanted()
		r.trust(w.root)
		role := r.creds.Keys().Identity().Role
		now := owed || w.role != "" && w.role != role || w.rotate != nil && w.rotate != rotated
		wait := at.left(r.now())
		if now {
			wait = pause
		}
		if !r.wait(ctx, wait, changed) {
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		if !now && at.left(r.now()) > 0 {
			continue
		}
		if err := r.request(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			leaf := r.creds.Keys().Leaf()
			r.log.Error("this node's certificate could not be renewed; will try again", "expires", leaf.NotAfter, "err", err)
			pause = min(max(2*pause, minRenewPause), renewRetry)
			at = moment{sleep: time.Now().Add(renewRetry/2 + rand.N(renewRetry/2))}
			owed = now // the managers may think that it was done, and not ask again soon
			continue
		}
		keys := r.creds.Keys()
		r.log.Info("this node's certificate was renewed", "role", keys.Identity().Role, "expires", keys.Leaf().NotAfter)
		at, pause, rotated, owed = r.due(renewAgain), 0, w.rotate, false
		if w.role != "" && keys.Identity().Role != w.role {
			pause = minRenewPause // the managers have changed their minds meanwhile
		}
	}
}

// moment is a time by the wall clock, or one that comes whatever is done to that.
type moment struct {
	wall, sleep time.Time // one of both; sleep has a monotonic reading
}

// due is when to renew the certificate that is in use now, but not before some time has
// passed: by a clock that is wrong a new one may have expired.
func (r *renewal) due(soonest time.Duration) moment {
	at := ca.RenewAt(r.creds.Keys().Leaf(), rand.Float64())
	if at.Sub(r.now()) <= soonest {
		return moment{sleep: time.Now().Add(soonest)}
	}
	return moment{wall: at}
}

// left is how long it is until the moment comes.
func (m moment) left(now time.Time) time.Duration {
	if m.wall.IsZero() {
		return max(time.Until(m.sleep), 0)
	}
	return max(m.wall.Sub(now), 0)
}

// trust takes over the root that the managers name, if this node's certificate is
// of it. Otherwise the node would shut itself out.
func (r *renewal) trust(rootPEM []byte) {
	old := r.creds.Keys()
	if len(rootPEM) == 0 || bytes.Equal(rootPEM, old.Root.CertPEM()) || bytes.Equal(rootPEM, r.refused) {
		return
	}
	err := func() error {
		root, err := ca.ParseRoot(rootPEM, nil)
		if err != nil {
			return err
		}
		keys, err := old.WithRoot(root, r.now())
		if err != nil {
			return err
		}
		return r.take(keys)
	}()
	if err != nil {
		r.refused = bytes.Clone(rootPEM)
		r.log.Error("the swarm's new root certificate is not taken over", "err", err)
		return
	}
	r.log.Info("this node trusts the root certificates that the managers named", "digest", r.creds.Keys().Root.Digest())
}

// take puts keys on disk and in use.
func (r *renewal) take(keys *ca.Keys) error {
	if err := r.outlived(keys); err != nil {
		return err
	}
	if err := r.vault.take(keys); err != nil {
		return err
	}
	r.refused = nil
	r.renewed()
	return nil
}

// outlived refuses a certificate that has expired while the one in use has not: whoever
// signed it has a clock that is behind by more than a certificate's life.
func (r *renewal) outlived(keys *ca.Keys) error {
	now, leaf := r.now(), keys.Leaf()
	if now.After(leaf.NotAfter) && !now.After(r.creds.Keys().Leaf().NotAfter) {
		return api.Errorf(api.Unavailable, "the managers have signed a certificate that expired at %s: their clock is behind", leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// wait returns true after the time (at most maxTimer), false when the managers
// say something new or ctx ends.
func (r *renewal) wait(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	t := time.NewTimer(min(d, maxTimer))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-changed:
	case <-ctx.Done():
	}
	return false
}

func (r *renewal) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	conn, addr, err := r.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	key, csr, err := ca.NewRequest()
	if err != nil {
		return err
	}
	client := swarmpb.NewNodeCAClient(conn)
	old := r.creds.Keys()
	issued, err := client.IssueNodeCertificate(ctx, &swarmpb.IssueNodeCertificateRequest{Csr: csr})
	if err != nil {
		r.failed(addr, err)
		return err
	}
	cert, err := certificate(ctx, client, issued.GetNodeId(), csr)
	if err != nil {
		return err
	}
	keys, err := ca.NewKeys(old.Root, cert, key, r.now())
	if err != nil {
		return err
	}
	if keys.Identity().Role != swarm.NodeRoleManager || old.Identity().Role == swarm.NodeRoleManager {
		return r.take(keys)
	}
	kek, err := unlockKeyFrom(ctx, addr, keys)
	if err != nil {
		return err
	}
	if err := r.outlived(keys); err != nil {
		return err
	}
	if err := r.vault.promote(keys, kek); err != nil {
		return err
	}
	r.renewed()
	return nil
}

// certificate waits for what the request was answered with.
func certificate(ctx context.Context, client swarmpb.NodeCAClient, nodeID string, csr []byte) ([]byte, error) {
	late, wait := errors.New("the managers have not signed it"), minRenewPause // what was heard last
	for {
		s, err := client.NodeCertificateStatus(ctx, &swarmpb.NodeCertificateStatusRequest{NodeId: nodeID})
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, fmt.Errorf("no certificate in time: %w: %w", late, ctx.Err())
		case err != nil:
			return nil, err
		}
		ours := bytes.Equal(s.GetCertificate().GetCsr(), csr)
		switch state := s.GetStatus().GetState(); {
		// With ROTATE the certificate is good, and another one is asked for already.
		case ours && (state == swarmpb.IssuanceStatus_ISSUED || state == swarmpb.IssuanceStatus_ROTATE):
			return s.GetCertificate().GetCertificate(), nil
		case ours && state == swarmpb.IssuanceStatus_FAILED:
			return nil, api.Errorf(api.PermissionDenied, "the manager refused a certificate: %s", s.GetStatus().GetErr())
		case ours && s.GetStatus().GetErr() != "":
			late, wait = errors.New(s.GetStatus().GetErr()), unsignedPause
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("no certificate in time: %w: %w", late, ctx.Err())
		}
	}
}
