package issuer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// maxWaiting bounds the calls, open to anyone, that wait for a certificate.
	maxWaiting = 512
	// maxWait is how long one waits before it is told how things stand.
	maxWait = 30 * time.Second
)

// Config configures an issuer.
type Config struct {
	// Store is required.
	Store *store.Store
	// Peer tells who makes the call that ctx belongs to; not ok, or without
	// NodeID, for a caller without certificate. Required.
	Peer func(ctx context.Context) (id ca.Identity, addr string, ok bool)
	// External speaks with external CAs. Nil: nodes are not given certificates
	// while the swarm has external ones.
	External *External
	// Log is required.
	Log *slog.Logger
}

// Issuer serves requests for certificates. Safe for concurrent use.
type Issuer struct {
	swarmpb.UnimplementedCAServer
	swarmpb.UnimplementedNodeCAServer

	cfg     Config
	waiting chan struct{}
	limits  *limits
}

// New returns an issuer.
func New(cfg Config) (*Issuer, error) {
	if cfg.Store == nil || cfg.Peer == nil || cfg.Log == nil {
		return nil, errors.New("issuer: Store, Peer and Log are required")
	}
	return &Issuer{cfg: cfg, waiting: make(chan struct{}, maxWaiting), limits: newLimits()}, nil
}

// Register registers the services CA and NodeCA.
func (i *Issuer) Register(s grpc.ServiceRegistrar) {
	swarmpb.RegisterCAServer(s, i)
	swarmpb.RegisterNodeCAServer(s, i)
}

func cluster(r store.Reader) (*api.Cluster, error) {
	for c := range store.List[*api.Cluster](r) {
		return c, nil
	}
	return nil, api.Errorf(api.Unavailable, "this manager does not know the swarm yet; try again")
}

// GetRootCACertificate implements the CA service.
func (i *Issuer) GetRootCACertificate(context.Context, *swarmpb.GetRootCACertificateRequest) (*swarmpb.GetRootCACertificateResponse, error) {
	c, err := cluster(i.cfg.Store.View())
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetRootCACertificateResponse{Certificate: c.RootCA.Cert}, nil
}

// GetUnlockKey implements the CA service. The caller was found to be a manager.
func (i *Issuer) GetUnlockKey(ctx context.Context, _ *swarmpb.GetUnlockKeyRequest) (*swarmpb.GetUnlockKeyResponse, error) {
	view := i.cfg.Store.View()
	who, _, ok := i.cfg.Peer(ctx)
	// The certificate of a manager that was demoted is good for a while.
	if n := store.Get[*api.Node](view, who.NodeID); !ok || who.Role != swarm.NodeRoleManager || n == nil || n.Spec.Role != swarm.NodeRoleManager {
		return nil, api.Errorf(api.PermissionDenied, "the unlock key is for managers")
	}
	c, err := cluster(view)
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetUnlockKeyResponse{UnlockKey: c.UnlockKey, Version: &swarmpb.Version{Index: c.Version.Index}}, nil
}

// IssueNodeCertificate implements the NodeCA service.
func (i *Issuer) IssueNodeCertificate(ctx context.Context, req *swarmpb.IssueNodeCertificateRequest) (*swarmpb.IssueNodeCertificateResponse, error) {
	var id string
	var err error
	if who, _, ok := i.cfg.Peer(ctx); ok && who.NodeID != "" {
		id, err = who.NodeID, i.renew(ctx, who.NodeID, req.GetCsr())
	} else {
		id, err = i.join(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	return &swarmpb.IssueNodeCertificateResponse{NodeId: id, NodeMembership: swarmpb.NodeSpec_ACCEPTED}, nil
}

// roleOf returns the role that a join token gives.
func roleOf(c *api.Cluster, token string) (swarm.NodeRole, error) {
	manager, worker := ca.SameToken(token, c.JoinTokens.Manager), ca.SameToken(token, c.JoinTokens.Worker)
	switch {
	case manager:
		return swarm.NodeRoleManager, nil
	case worker:
		return swarm.NodeRoleWorker, nil
	}
	return "", api.Errorf(api.Invalid, "A valid join token is necessary to join this cluster: it may have been rotated; `docker swarm join-token` on a manager shows the present one")
}

// join makes a node of a caller with a token.
func (i *Issuer) join(ctx context.Context, req *swarmpb.IssueNodeCertificateRequest) (string, error) {
	if c, err := cluster(i.cfg.Store.View()); err != nil {
		return "", err
	} else if _, err := roleOf(c, req.GetToken()); err != nil {
		return "", err // before anything that costs: anyone can call
	}
	if !i.limits.join(time.Now()) {
		return "", api.Errorf(api.ResourceExhausted, "too many nodes join at this moment; try again")
	}
	if err := ca.CheckRequest(req.GetCsr()); err != nil {
		return "", err
	}
	id := api.NewID()
	_, err := i.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		c, err := cluster(tx)
		if err != nil {
			return err
		}
		// Read by its id, so that a token that is rotated meanwhile is no good.
		role, err := roleOf(store.Get[*api.Cluster](tx, c.ID), req.GetToken())
		if err != nil {
			return err
		}
		n := NewNode(id, role, req.GetAvailability().API(), req.GetCsr())
		return store.Create(tx, Sign(c, n, i.cfg.Store.Now()))
	})
	if err != nil {
		return "", err
	}
	i.cfg.Log.Info("a node joined", "node", id)
	return id, nil
}

// NewNode returns the object of a node that joins, its certificate pending.
func NewNode(id string, role swarm.NodeRole, availability swarm.NodeAvailability, csr []byte) *api.Node {
	if availability == "" {
		availability = swarm.NodeAvailabilityActive
	}
	return &api.Node{
		Node: swarm.Node{
			ID:     id,
			Spec:   swarm.NodeSpec{Role: role, Availability: availability},
			Status: swarm.NodeStatus{State: swarm.NodeStateUnknown, Message: "joined; waiting for its first session"},
		},
		Role:        role,
		Certificate: api.Certificate{Role: role, CSR: csr, State: api.CertificatePending, CN: id},
	}
}

// renew takes the request of a node that has a certificate.
func (i *Issuer) renew(ctx context.Context, id string, csr []byte) error {
	if store.Get[*api.Node](i.cfg.Store.View(), id) == nil {
		return errRemoved(id)
	}
	if !i.limits.renew(id, time.Now()) {
		return api.Errorf(api.ResourceExhausted, "node %s asks for certificates too often; try again later", id)
	}
	if err := ca.CheckRequest(csr); err != nil {
		return err
	}
	_, err := i.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		c, err := cluster(tx)
		if err != nil {
			return err
		}
		old := store.Get[*api.Node](tx, id)
		if old == nil {
			return errRemoved(id)
		}
		n := *old
		n.Certificate = api.Certificate{Role: n.Role, CSR: csr, State: api.CertificateRenew, CN: id}
		return store.Put(tx, Sign(c, &n, i.cfg.Store.Now()))
	})
	return err
}

func errRemoved(id string) error {
	return api.Errorf(api.NotFound, "node %s is not part of the swarm: it was removed", id)
}

// NodeCertificateStatus implements the NodeCA service: it waits until the node's
// request is settled. Certificates are public, so anyone may ask.
func (i *Issuer) NodeCertificateStatus(ctx context.Context, req *swarmpb.NodeCertificateStatusRequest) (*swarmpb.NodeCertificateStatusResponse, error) {
	if req.GetNodeId() == "" {
		return nil, api.Errorf(api.Invalid, "node id is missing")
	}
	n := store.Get[*api.Node](i.cfg.Store.View(), req.GetNodeId())
	if n != nil && settled(n) {
		return answer(n), nil
	}
	select {
	case i.waiting <- struct{}{}:
		defer func() { <-i.waiting }()
	default:
		return nil, api.Errorf(api.ResourceExhausted, "too many nodes wait for certificates; try again")
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	n, err := i.wait(ctx, req.GetNodeId())
	if err != nil {
		return nil, err
	}
	return answer(n), nil
}

func settled(n *api.Node) bool {
	s := n.Certificate.State
	return s != api.CertificatePending && s != api.CertificateRenew
}

func (i *Issuer) wait(ctx context.Context, id string) (*api.Node, error) {
	for {
		view, w := i.cfg.Store.Watch(store.KindNode)
		n, err := waitOn(ctx, view, w, id)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return n, err
		}
	}
}

func waitOn(ctx context.Context, view *store.View, w *store.Watcher, id string) (*api.Node, error) {
	n := store.Get[*api.Node](view, id)
	for {
		if n == nil {
			return nil, api.Errorf(api.NotFound, "node %s is not part of the swarm", id)
		}
		if settled(n) || n.Certificate.Err != "" { // who waits is told why
			return n, nil
		}
		changes, err := w.Next(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			return n, nil // as things stand; the node asks again
		}
		if err != nil {
			return nil, err
		}
		for _, c := range changes {
			if c.ID == id {
				n, _ = c.New.(*api.Node)
			}
		}
	}
}

func answer(n *api.Node) *swarmpb.NodeCertificateStatusResponse {
	c := swarmpb.NewCertificate(&n.Certificate)
	return &swarmpb.NodeCertificateStatusResponse{Status: c.Status, Certificate: c}
}
