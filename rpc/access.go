package rpc

import (
	"context"
	"crypto/x509"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/swarmpb"
)

// access says who may call a method.
type access uint8

const (
	nobody   access = iota // not in the table
	anyone                 // also without certificate
	nodes                  // workers and managers
	managers               // managers only
)

// methods returns the one table of who may call what. A method that is not in
// it is refused.
func methods() map[string]access {
	return map[string]access{
		swarmpb.CA_GetRootCACertificate_FullMethodName:       anyone,
		swarmpb.CA_GetUnlockKey_FullMethodName:               managers,
		swarmpb.NodeCA_IssueNodeCertificate_FullMethodName:   anyone,
		swarmpb.NodeCA_NodeCertificateStatus_FullMethodName:  anyone,
		swarmpb.Dispatcher_Session_FullMethodName:            nodes,
		swarmpb.Dispatcher_Heartbeat_FullMethodName:          nodes,
		swarmpb.Dispatcher_UpdateTaskStatus_FullMethodName:   nodes,
		swarmpb.Dispatcher_UpdateVolumeStatus_FullMethodName: nodes,
		swarmpb.Dispatcher_Tasks_FullMethodName:              nodes,
		swarmpb.Dispatcher_Assignments_FullMethodName:        nodes,
		swarmpb.Overlays_Endpoints_FullMethodName:            nodes,
		swarmpb.Overlays_Confirm_FullMethodName:              nodes,
		swarmpb.Overlays_Withdrawn_FullMethodName:            nodes,
		swarmpb.Attachments_Attach_FullMethodName:            nodes,
		swarmpb.Attachments_Detach_FullMethodName:            nodes,
		swarmpb.Attachments_Attached_FullMethodName:          nodes,
		swarmpb.LogBroker_ListenSubscriptions_FullMethodName: nodes,
		swarmpb.LogBroker_PublishLogs_FullMethodName:         nodes,
		swarmpb.Logs_SubscribeLogs_FullMethodName:            managers,
		swarmpb.Health_Check_FullMethodName:                  managers,
		raftProtocol:                                         managers,
		swarmpb.Raft_Snapshot_FullMethodName:                 managers,
		swarmpb.Raft_Propose_FullMethodName:                  managers,
		swarmpb.Raft_Join_FullMethodName:                     managers,
		swarmpb.Raft_Members_FullMethodName:                  managers,
		swarmpb.Raft_Hello_FullMethodName:                    managers,
		engineJoin:                                           managers,
	}
}

// Peer is who makes a call: what its certificate says, and where it calls from.
// NodeID is empty for a caller without certificate.
type Peer struct {
	ca.Identity
	Addr string            // host:port
	Leaf *x509.Certificate // nil for a caller without certificate
}

// Manager reports whether the caller is a manager.
func (p Peer) Manager() bool { return p.NodeID != "" && p.Role == swarm.NodeRoleManager }

type peerKey struct{}

// WithPeer returns a context in which PeerFrom finds p: for calls that do not
// come over the network.
func WithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// PeerFrom returns who makes the call that ctx belongs to. False outside calls.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// peerOf reads the caller's identity from its connection. cluster is the swarm
// that it must be of.
func peerOf(ctx context.Context, cluster string) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, api.Errorf(api.Internal, "call without connection")
	}
	caller := Peer{Addr: p.Addr.String()}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Peer{}, api.Errorf(api.Unauthenticated, "call without TLS")
	}
	certs := info.State.PeerCertificates
	if len(certs) == 0 {
		return caller, nil
	}
	id, err := identityOf(certs[0], cluster)
	caller.Identity, caller.Leaf = id, certs[0]
	return caller, err
}

func identityOf(cert *x509.Certificate, cluster string) (ca.Identity, error) {
	id, ok := ca.IdentityOf(cert)
	if !ok {
		return ca.Identity{}, api.Errorf(api.Unauthenticated, "the caller's certificate is not that of a node")
	}
	if id.Cluster != cluster {
		return ca.Identity{}, api.Errorf(api.PermissionDenied, "node %s is of another swarm", id.NodeID)
	}
	return id, nil
}

// check says why the caller may not call the method, or nil.
func (a access) check(method string, p Peer) error {
	switch a {
	case anyone:
		return nil
	case nodes:
		if p.NodeID != "" {
			return nil
		}
	case managers:
		if p.Manager() {
			return nil
		}
	case nobody:
		return api.Errorf(api.Unimplemented, "%s is not served here", method)
	}
	if p.NodeID == "" {
		return api.Errorf(api.Unauthenticated, "%s needs a node certificate of this swarm", method)
	}
	return api.Errorf(api.PermissionDenied, "%s is for managers; node %s is a worker", method, p.NodeID)
}
