package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/legion-swarm/legion/api"
)

// Limits on what a peer can make grow.
const (
	// MaxRequest bounds what a client may send in one message: a full batch of
	// task statuses or log lines is far below.
	MaxRequest = 8 << 20
	// MaxResponse bounds what a manager may send a node in one message: a node's
	// complete set of assignments.
	MaxResponse = 128 << 20

	// streamWindow and connWindow are how much may be under way that the receiver
	// has not read. They are fixed: where gRPC is to find them out by itself, it
	// answers each message with a ping, and three packets are sent in place of one.
	streamWindow = 2 << 20
	connWindow   = 8 << 20

	maxStreams       = 1024
	maxHeaders       = 64 << 10
	keepaliveIdle    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// silenceTimeout is longer than the dispatcher takes a broken connection for a
	// node's death: the transport also applies it to what was sent and is not
	// acknowledged (TCP_USER_TIMEOUT), and that is silence, not death.
	silenceTimeout   = 15 * time.Second
	handshakeTimeout = 10 * time.Second
)

// ServerConfig configures a server.
type ServerConfig struct {
	// Credentials are the node's own. Required.
	Credentials *Credentials
	// Removed reports whether a node was removed from the swarm: its certificate
	// is good, but it may call nothing. Nil: none was.
	Removed func(nodeID string) bool
	// Log gets faults of ours (panics in handlers, errors of class Internal).
	// Required.
	Log *slog.Logger
}

type server struct {
	ServerConfig
	methods map[string]access
}

// NewServer returns a server on which the services of the table can be
// registered. The caller serves a listener with it, and stops it.
func NewServer(cfg ServerConfig) *Server {
	s := &server{ServerConfig: cfg, methods: methods()}
	raft := &raftConns{
		TransportCredentials: credentials.NewTLS(cfg.Credentials.ServerConfig()), conns: map[net.Conn]struct{}{}, log: cfg.Log,
		admit: func(ctx context.Context) (context.Context, error) { return s.admit(ctx, raftProtocol) },
	}
	return &Server{raft: raft, Server: grpc.NewServer(
		grpc.Creds(raft),
		grpc.MaxRecvMsgSize(MaxRequest),
		grpc.MaxSendMsgSize(MaxResponse),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveIdle, Timeout: silenceTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)}
}

func (s *server) admit(ctx context.Context, method string) (context.Context, error) {
	keys := s.Credentials.Keys()
	if keys == nil {
		return nil, errNoIdentity()
	}
	p, err := peerOf(ctx, keys.Identity().Cluster)
	if err != nil {
		return nil, err
	}
	if err := s.refuse(p.NodeID); err != nil {
		return nil, err
	}
	if err := s.methods[method].check(method, p); err != nil {
		return nil, err
	}
	return WithPeer(ctx, p), nil
}

// refuse returns an error for a node that was removed: NotFound, as the dispatcher
// answers one that it does not know, so that an agent gives up.
func (s *server) refuse(nodeID string) error {
	if nodeID != "" && s.Removed != nil && s.Removed(nodeID) {
		return api.Errorf(api.NotFound, "node %s is not part of the swarm: it was removed", nodeID)
	}
	return nil
}

func (s *server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() { err = s.finish(recover(), info.FullMethod, err) }()
	if ctx, err = s.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (s *server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() { err = s.finish(recover(), info.FullMethod, err) }()
	ctx, err := s.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	p, _ := PeerFrom(ctx)
	return handler(srv, &stream{ServerStream: ss, ctx: ctx, refuse: func() error { return s.refuse(p.NodeID) }})
}

// finish turns a handler's outcome into what goes over the wire. A panic fails
// the call, not the manager.
func (s *server) finish(panicked any, method string, err error) error {
	if panicked != nil {
		s.Log.Error("call panicked", "method", method, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		err = api.Errorf(api.Internal, "%s failed: see the manager's log", method)
	}
	return toStatus(err)
}

// stream is a call that lasts; a node that is removed meanwhile neither gets nor
// says anything more.
type stream struct {
	grpc.ServerStream
	ctx    context.Context //nolint:containedctx // what ServerStream has
	refuse func() error
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) SendMsg(m any) error {
	if err := s.refuse(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func (s *stream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.refuse()
}
