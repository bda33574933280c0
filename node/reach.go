package node

import (
	"context"
	"errors"
	"net"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

// probe reports whether a process accepts connections at an address: false when
// its host refuses, an error when nobody answers.
func probe(ctx context.Context, addr string) (bool, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	switch {
	case err == nil:
		return true, conn.Close()
	case errors.Is(err, unix.ECONNREFUSED):
		return false, nil
	}
	return false, err
}

// sync returns when the store has all that was committed before.
func (p *managerPart) sync(ctx context.Context) error {
	_, err := p.raft.ReadIndex(ctx)
	return err
}

// led tells whether some manager leads.
func (p *managerPart) led() (bool, <-chan struct{}) {
	changed := p.raft.Changed()
	return p.raft.Status().Leader != 0, changed
}

// reaches reports whether this manager, which leads, reaches another one.
func (p *managerPart) reaches(n *api.Node) bool {
	return n.ID == p.state.NodeID || p.managerStatus(n).Reachability == swarm.ReachabilityReachable
}
