package rpc

import (
	"context"
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

const (
	dialTimeout  = 5 * time.Second
	redialDelay  = 50 * time.Millisecond
	redialLimit  = 2 * time.Second
	redialFactor = 1.6
	redialJitter = 0.2
)

// Dial returns a connection to the manager at addr (host:port), made when it is
// first used and made again when it breaks. config is a ClientConfig or a
// JoinConfig. Errors of its calls have classes of package api. The caller closes
// it.
func Dial(addr string, config *tls.Config) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxResponse), grpc.MaxCallSendMsgSize(MaxRequest)),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: dialTimeout,
			Backoff:           backoff.Config{BaseDelay: redialDelay, MaxDelay: redialLimit, Multiplier: redialFactor, Jitter: redialJitter},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveIdle, Timeout: keepaliveTimeout}),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithDisableServiceConfig(),
		grpc.WithUnaryInterceptor(classify),
		grpc.WithStreamInterceptor(classifyStream),
	)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "manager address %q: %w", addr, err)
	}
	return conn, nil
}

// DialManager is Dial with the node's own certificate, to a manager's services
// for nodes.
func DialManager(addr string, c *Credentials) (*grpc.ClientConn, error) {
	return Dial(addr, c.ClientConfig(ca.ManagerOU))
}

func classify(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return Error(invoke(ctx, method, req, reply, cc, opts...))
}

func classifyStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, Error(err)
	}
	return &clientStream{s}, nil
}

type clientStream struct{ grpc.ClientStream }

func (s *clientStream) RecvMsg(m any) error { return Error(s.ClientStream.RecvMsg(m)) }

func (s *clientStream) SendMsg(m any) error { return Error(s.ClientStream.SendMsg(m)) }

func (s *clientStream) CloseSend() error { return Error(s.ClientStream.CloseSend()) }
