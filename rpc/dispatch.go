package rpc

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/legion-swarm/legion/api"
)

// maxRaftConns bounds the connections for raft's messages: a manager has one to
// each other, for a moment two.
const maxRaftConns = 256

// Server serves gRPC calls and, on the same port, raft's connections.
type Server struct {
	*grpc.Server
	raft *raftConns
}

// Stop ends all that is being served, and returns when it has ended.
func (s *Server) Stop() {
	s.Server.Stop() // first: who loses a connection and can make a new one does not take this manager for dead
	s.raft.stop()
}

// raftConns takes connections with raftProtocol out of a gRPC server's hands, and
// bounds those of strangers.
type raftConns struct {
	credentials.TransportCredentials

	strangers strangers

	// admit says who calls, or why they may not.
	admit func(ctx context.Context) (context.Context, error)
	log   *slog.Logger

	mu      sync.Mutex
	handle  func(ctx context.Context, w *wire) error // nil: raft is not served
	conns   map[net.Conn]struct{}
	stopped bool
	work    sync.WaitGroup
}

// ServerHandshake implements credentials.TransportCredentials.
func (r *raftConns) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := r.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	t, ok := info.(credentials.TLSInfo)
	switch {
	case ok && t.State.NegotiatedProtocol == raftProtocol:
	case ok && len(t.State.PeerCertificates) > 0:
		return conn, info, nil
	default:
		conn, err := r.strangers.admit(conn)
		return conn, info, err
	}
	if err := r.take(conn, info); err != nil {
		return nil, nil, err // the caller closes it
	}
	return nil, nil, credentials.ErrConnDispatched
}

// Clone implements credentials.TransportCredentials.
func (r *raftConns) Clone() credentials.TransportCredentials { return r }

// take serves a connection from now on.
func (r *raftConns) take(conn net.Conn, info credentials.AuthInfo) error {
	ctx, err := r.admit(peer.NewContext(context.Background(), &peer.Peer{Addr: conn.RemoteAddr(), LocalAddr: conn.LocalAddr(), AuthInfo: info}))
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopped || r.handle == nil:
		return api.Errorf(api.Unavailable, "this manager is stopping")
	case len(r.conns) >= maxRaftConns:
		return api.Errorf(api.ResourceExhausted, "this manager has %d raft connections already", maxRaftConns)
	}
	r.conns[conn] = struct{}{}
	handle := r.handle
	r.work.Go(func() {
		defer r.drop(conn)
		if err := handle(ctx, newWire(conn)); err != nil {
			p, _ := PeerFrom(ctx)
			r.log.Warn("the connection of another manager was ended, which sent what it must not", "node", p.NodeID, "address", p.Addr, "err", err)
		}
	})
	return nil
}

func (r *raftConns) drop(conn net.Conn) {
	_ = conn.Close() // it is of no use any more, however that ends
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
}

// stop ends all connections, and waits.
func (r *raftConns) stop() {
	r.mu.Lock()
	r.stopped = true
	for conn := range r.conns {
		_ = conn.Close() // that is what ends its reader
	}
	r.mu.Unlock()
	r.work.Wait()
}
