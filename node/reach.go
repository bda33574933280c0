package node

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
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

// pauseTimeout bounds how long a manager that stops waits for the others to
// take note of it.
const pauseTimeout = 500 * time.Millisecond

// pause tells the other managers that this one ends on purpose, its containers
// run on: they give it the whole grace period to come back.
func (p *managerPart) pause() {
	if st := p.raft.Status(); len(st.Voters) < 2 || st.Leader == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), pauseTimeout)
	defer cancel()
	_, err := p.store.Update(ctx, func(tx *store.Tx) error {
		n := store.Get[*api.Node](tx, p.state.NodeID)
		if n == nil || n.Session.Manager != n.ID || n.Session.Paused {
			return nil
		}
		u := *n
		u.Session.Paused = true
		return store.Put(tx, &u)
	})
	if err != nil {
		p.log.Warn("the other managers don't know that this one stops on purpose", "err", err)
	}
}
