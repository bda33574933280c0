package node

import (
	"context"
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

// renewal gets the node a new certificate before the old one expires, and when
// its role changes.
type renewal struct {
	creds *rpc.Credentials
	files ca.Files
	dial  func(context.Context) (*grpc.ClientConn, string, error)
	// wanted returns the role that the managers gave this node (empty: not known
	// yet), and a channel that is closed when they say something new.
	wanted func() (swarm.NodeRole, <-chan struct{})
	// renewed is told that there is a new certificate.
	renewed func()
	log     *slog.Logger
}

const (
	renewRetry   = time.Minute
	renewTimeout = 30 * time.Second
	// minRenewPause is the first pause before a role is asked for again.
	minRenewPause = 200 * time.Millisecond
	// maxTimer bounds one wait: the clock may be set, and timers do not follow it.
	maxTimer = time.Hour
)

func (r *renewal) run(ctx context.Context) error {
	at := ca.RenewAt(r.creds.Keys().Leaf(), rand.Float64())
	var pause time.Duration
	for {
		role, changed := r.wanted()
		other := role != "" && role != r.creds.Keys().Identity().Role
		wait := max(time.Until(at), 0)
		if other {
			wait = pause
		}
		if !r.wait(ctx, wait, changed) {
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		if !other && time.Now().Before(at) {
			continue
		}
		if err := r.renew(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			r.log.Error("this node's certificate could not be renewed; will try again", "expires", r.creds.Keys().Leaf().NotAfter, "err", err)
			at, pause = time.Now().Add(renewRetry), min(max(2*pause, minRenewPause), renewRetry)
			continue
		}
		leaf := r.creds.Keys().Leaf()
		r.log.Info("this node's certificate was renewed", "role", r.creds.Keys().Identity().Role, "expires", leaf.NotAfter)
		at, pause = ca.RenewAt(leaf, rand.Float64()), 0
		if other && r.creds.Keys().Identity().Role != role {
			pause = minRenewPause // the managers have changed their minds meanwhile
		}
	}
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
	conn, _, err := r.dial(ctx)
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
		return err
	}
	cert, err := certificate(ctx, client, issued.GetNodeId())
	if err != nil {
		return err
	}
	keys, err := ca.NewKeys(old.Root, cert, key, time.Now())
	if err != nil {
		return err
	}
	if err := r.files.Save(keys, nil); err != nil {
		return err
	}
	if err := r.creds.Set(keys); err != nil {
		return err
	}
	r.renewed()
	return nil
}

// certificate waits for what a request was answered with.
func certificate(ctx context.Context, client swarmpb.NodeCAClient, nodeID string) ([]byte, error) {
	for {
		s, err := client.NodeCertificateStatus(ctx, &swarmpb.NodeCertificateStatusRequest{NodeId: nodeID})
		if err != nil {
			return nil, err
		}
		switch s.GetStatus().GetState() {
		case swarmpb.IssuanceStatus_ISSUED:
			return s.GetCertificate().GetCertificate(), nil
		case swarmpb.IssuanceStatus_FAILED:
			return nil, api.Errorf(api.PermissionDenied, "the manager refused a certificate: %s", s.GetStatus().GetErr())
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("no certificate in time: %w", err)
		}
	}
}
