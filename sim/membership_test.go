package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

// firstRaftID is that of the manager with which the swarm begins.
const firstRaftID = 1

// errNoManager: the host was taken out of the log, or has a worker's certificate.
var errNoManager = errors.New("not a manager any more")

func (c *cluster) newRaftID() uint64 { return firstRaftID + c.raftIDs.Add(1) }

// joining makes this manager a member, and waits until it knows the swarm.
func (m *manager) joining(ctx context.Context) {
	for len(m.raft.Status().Members) == 0 && ctx.Err() == nil {
		if err := m.join(ctx); err == nil {
			break
		}
		pause(ctx, 300*time.Millisecond)
	}
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := m.raft.ReadIndex(call)
		cancel()
		if err == nil && store.Count[*api.Cluster](m.store.View()) > 0 {
			m.nowKnows()
			return
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// join asks the leader, wherever it is: a manager asked would pass it on.
func (m *manager) join(ctx context.Context) error {
	err := error(api.Errorf(api.Unavailable, "nobody leads"))
	for _, h := range m.c.hosts {
		o := h.managing()
		if o == nil || o == m || !o.raft.Status().IsLeader {
			continue
		}
		t := transport{net: m.c.net, from: m.addr}
		if _, err = t.call(ctx, h.addr); err != nil {
			continue
		}
		if err = o.keeper.Join(ctx, m.host.node(), raftnode.Member{ID: m.id, Address: m.addr}); err == nil {
			err = t.answer(ctx, h.addr)
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// watchMembership ends with errNoManager when the others have taken this manager
// out of the log.
func (m *manager) watchMembership(ctx context.Context) error {
	joined := false
	for {
		changed := m.raft.Changed()
		st := m.raft.Status()
		is := slices.ContainsFunc(st.Members, func(o raftnode.Member) bool { return o.ID == st.ID })
		if joined && !is {
			return errNoManager
		}
		joined = joined || is
		wait := time.Hour
		if joined && st.Leader == 0 {
			wait = 3 * time.Second
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case <-t.C:
			if st.Leader == 0 && m.stranger(ctx) {
				return errNoManager
			}
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

// stranger asks the others; true: one says, with a quorum behind it, that this
// manager is no member.
func (m *manager) stranger(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, h := range m.c.hosts {
		if h == m.host {
			continue
		}
		t := transport{net: m.c.net, from: m.addr}
		o, err := t.call(ctx, h.addr)
		if err != nil {
			continue
		}
		if _, err := o.raft.ReadIndex(ctx); err != nil {
			continue
		}
		members := o.raft.Status().Members
		if t.answer(ctx, h.addr) == nil {
			return !slices.ContainsFunc(members, func(x raftnode.Member) bool { return x.ID == m.id })
		}
	}
	return false
}

// tell has a user change a node's spec at some manager.
func (c *cluster) tell(ctx context.Context, h *host, what string, change func(*swarm.NodeSpec)) {
	m := c.manager(c.rng)
	if m == nil {
		return
	}
	c.orders.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		if _, err := m.raft.ReadIndex(ctx); err != nil {
			return
		}
		n, err := m.control.NodeInspect(ctx, h.node())
		if api.Is(err, api.NotFound) && h.mayBeRemoved() {
			return
		}
		if err != nil {
			c.failf("inspect %s at %s: %v", h.id, m.host.id, err)
			return
		}
		change(&n.Spec)
		err = m.control.NodeUpdate(ctx, n.ID, n.Version.Index, &n.Spec)
		c.events.add(fmt.Sprintf("%s %s at %s: %v", what, h.id, m.host.id, err))
	})
}

// misplaced says which host is not what users want it to be.
func (c *cluster) misplaced(view *store.View) string {
	if have := store.Count[*api.Node](view); have != len(c.hosts) {
		return fmt.Sprintf("there are %d nodes for %d hosts", have, len(c.hosts))
	}
	for _, h := range c.hosts {
		n := store.Get[*api.Node](view, h.node())
		is := h.managing()
		switch {
		case n == nil:
			return "the managers don't know " + h.id + " yet"
		case n.Role != n.Spec.Role:
			return h.id + " is a " + string(n.Role) + " and shall be a " + string(n.Spec.Role)
		case n.Status.State != swarm.NodeStateReady:
			return h.id + " is " + string(n.Status.State)
		case n.Role == swarm.NodeRoleWorker && is != nil:
			return h.id + " is a worker, and has a manager part"
		case n.Role == swarm.NodeRoleManager && (is == nil || is.id != n.RaftID):
			return h.id + " is a manager, and has no manager part"
		case n.Role == swarm.NodeRoleManager && !slices.Contains(is.raft.Status().Voters, n.RaftID):
			return h.id + " is a manager without a vote"
		}
	}
	return ""
}
