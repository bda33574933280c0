package sim

import (
	"context"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/raftnode/disktest"
	"github.com/legion-swarm/legion/store"
)

func (h *host) mayBeRemoved() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removed
}

// remove has a user remove a host's node from the swarm by force. Managers refuse.
func (c *cluster) remove(ctx context.Context, h *host) {
	m := c.manager(c.rng)
	if is, _ := h.certified(); m == nil || is {
		return
	}
	h.mu.Lock()
	h.removed = true
	h.mu.Unlock()
	c.orders.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		err := m.control.NodeRemove(ctx, h.node(), true)
		c.events.add(fmt.Sprintf("%s is removed at %s: %v", h.id, m.host.id, err))
	})
}

// rejoinAll has all hosts join again of which somebody has tried to remove the node, and
// that are not managers now.
func (c *cluster) rejoinAll(ctx context.Context) {
	for _, h := range c.hosts {
		is, _ := h.certified()
		c.net.mu.Lock()
		dark := h.dark
		c.net.mu.Unlock()
		if m := c.manager(c.rng); h.mayBeRemoved() && !is && !dark && m != nil {
			h.rejoin(ctx, m)
		}
	}
}

// rejoin leaves the swarm, with all that runs, and joins it as another node.
func (h *host) rejoin(ctx context.Context, m *manager) {
	h.end(false)
	h.fake.Lose()
	id, dir := h.id+"-"+api.NewID()[:4], h.c.t.TempDir()
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := m.store.Update(ctx, func(tx *store.Tx) error {
		if store.Count[*api.Cluster](tx) == 0 {
			return api.Errorf(api.Unavailable, "no cluster yet")
		}
		n := issuer.NewNode(id, swarm.NodeRoleWorker, "", nil)
		n.Certificate.State = api.CertificateIssued
		return store.Create(tx, n)
	})
	h.c.events.add(fmt.Sprintf("%s joins again as %s at %s: %v", h.id, id, m.host.id, err))
	if err != nil {
		return // it may be a node by now, and yet there is no host to it
	}
	h.mu.Lock()
	h.nodeID, h.dir, h.removed, h.manages, h.raftID, h.disk = id, dir, false, false, 0, disktest.New()
	h.mu.Unlock()
	h.start()
}

// removedLate has hosts join again of which a user removed the node before the last fault
// was over, and the managers did it after; else it is what otherwise says.
func (c *cluster) removedLate(ctx context.Context, otherwise func() string) string {
	if slices.ContainsFunc(c.hosts, (*host).mayBeRemoved) {
		if what := c.settleNodes(ctx); what != "" {
			return what
		}
	}
	return otherwise()
}

// settleNodes has all hosts join that are no nodes, and removes nodes without a host.
// It says what it had to do.
func (c *cluster) settleNodes(ctx context.Context) string {
	m := c.leader()
	if m == nil {
		return "no manager"
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if _, err := m.raft.ReadIndex(ctx); err != nil {
		return err.Error()
	}
	view := m.store.View()
	for _, h := range c.hosts {
		if is, _ := h.certified(); store.Get[*api.Node](view, h.node()) == nil {
			if is {
				return h.id + " is still a manager, and no node"
			}
			h.rejoin(ctx, m)
			return h.id + " was no node"
		}
	}
	for n := range store.List[*api.Node](view) {
		if slices.ContainsFunc(c.hosts, func(h *host) bool { return h.node() == n.ID }) {
			continue
		}
		if n.Spec.Role == swarm.NodeRoleManager {
			u := n.Spec
			u.Role = swarm.NodeRoleWorker
			_ = m.control.NodeUpdate(ctx, n.ID, n.Version.Index, &u)
		} else {
			_ = m.control.NodeRemove(ctx, n.ID, true)
		}
		return "node " + n.ID + " had no host"
	}
	return ""
}
