package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/swarmpb"
)

// renewal gets the node a new certificate before the old one expires.
type renewal struct {
	creds *rpc.Credentials
	files ca.Files
	dial  func(context.Context) (*grpc.ClientConn, error)
	log   *slog.Logger
}

const (
	renewRetry   = time.Minute
	renewTimeout = 30 * time.Second
	// maxTimer bounds one wait: the clock may be set, and timers do not follow it.
	maxTimer = time.Hour
)

func (r *renewal) run(ctx context.Context) error {
	at := ca.RenewAt(r.creds.Keys().Leaf(), rand.Float64())
	for {
		t := time.NewTimer(min(max(time.Until(at), 0), maxTimer))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		if time.Now().Before(at) {
			continue
		}
		if err := r.renew(ctx); err != nil {
			r.log.Error("this node's certificate could not be renewed; will try again", "expires", r.creds.Keys().Leaf().NotAfter, "err", err)
			at = time.Now().Add(renewRetry)
			continue
		}
		leaf := r.creds.Keys().Leaf()
		r.log.Info("this node's certificate was renewed", "expires", leaf.NotAfter)
		at = ca.RenewAt(leaf, rand.Float64())
	}
}

func (r *renewal) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	conn, err := r.dial(ctx)
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
	return r.creds.Set(keys)
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
