package node

import (
	"context"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/rpc"
)

// foundedWait is how long a manager that starts again waits for its own log to
// tell of the swarm before it turns to another manager.
const foundedWait = time.Second

// dial connects to a manager and returns the address that it is known by: to
// this node's own while that serves, else to another one.
func (m *member) dial(ctx context.Context) (*grpc.ClientConn, string, error) {
	own, self := m.own(), m.membership().AdvertiseAddr
	prefer, exclude := "", self
	known := slices.ContainsFunc(m.managers.List(), func(p swarm.Peer) bool { return p.Addr == self })
	if own != nil && known && own.knows(ctx, foundedWait) {
		prefer, exclude = self, ""
	}
	addr := m.managers.Pick(prefer, exclude)
	if own != nil && (addr == "" || addr == self) {
		select {
		case <-own.founded:
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
		conn, err := rpc.DialManager(localAddr(own.listen.Addr()), m.creds)
		return conn, self, err
	}
	if addr == "" {
		return nil, "", api.Errorf(api.Unavailable, "this node knows no manager of its swarm")
	}
	conn, err := rpc.DialManager(addr, m.creds)
	return conn, addr, err
}

// own returns this node's manager part while the node is to stay a manager; nil
// otherwise.
func (m *member) own() *managerPart {
	if w, _ := m.wanted(); w.role == swarm.NodeRoleWorker {
		return nil
	}
	return m.managing()
}

// knows waits, but not long, until the manager part knows the swarm.
func (p *managerPart) knows(ctx context.Context, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-p.founded:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// learn remembers which managers there are.
func (m *member) learn(managers []swarm.Peer) {
	if len(managers) == 0 || slices.Equal(managers, m.membership().Managers) {
		return
	}
	err := m.remember(func(s *membership) { s.Managers = managers })
	if err != nil {
		m.log.Warn("the list of managers could not be kept on disk", "err", err)
	}
}
