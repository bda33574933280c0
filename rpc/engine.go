package rpc

import (
	"context"

	"google.golang.org/grpc"
)

// A Docker Engine that joins with a manager's token, or is promoted, calls
// SwarmKit's RaftMembership. Its log and ours have nothing in common, so that the
// request is not even read.
const (
	engineService = "docker.swarmkit.v1.RaftMembership"
	engineMethod  = "Join"
	engineJoin    = "/" + engineService + "/" + engineMethod
)

// registerEngine has h asked when a Docker Engine wants to be a manager.
func registerEngine(s *Server, h RaftHandler) {
	refuse := func(ctx context.Context, _ any) (any, error) {
		from, _ := PeerFrom(ctx)
		return nil, h.RefuseEngine(ctx, from)
	}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: engineService,
		HandlerType: (*RaftHandler)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: engineMethod,
			Handler: func(srv any, ctx context.Context, _ func(any) error, admitted grpc.UnaryServerInterceptor) (any, error) {
				return admitted(ctx, nil, &grpc.UnaryServerInfo{Server: srv, FullMethod: engineJoin}, refuse)
			},
		}},
	}, h)
}
