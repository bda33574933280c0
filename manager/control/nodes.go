package control

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func (c *Control) node(n *api.Node) swarm.Node {
	out := n.Node
	if c.cfg.Manager != nil && n.Role == swarm.NodeRoleManager && n.RaftID != 0 {
		out.ManagerStatus = c.cfg.Manager(n)
	}
	return out
}

// NodeList returns the nodes that the filters let through.
func (c *Control) NodeList(_ context.Context, f api.Filters) ([]swarm.Node, error) {
	if err := checkFilters(f, "id", "label", "membership", "name", "node.label", "role"); err != nil {
		return nil, err
	}
	for _, m := range f["membership"] {
		if m != "accepted" && m != "pending" {
			return nil, invalid("invalid membership filter: '%s'", m)
		}
	}
	for _, r := range f["role"] {
		if r != string(swarm.NodeRoleManager) && r != string(swarm.NodeRoleWorker) {
			return nil, invalid("invalid role filter: '%s'", r)
		}
	}
	out := []swarm.Node{}
	for n := range store.List[*api.Node](c.cfg.Store.View()) {
		if anyPrefix(f["id"], n.ID) && anyPrefix(f["name"], n.Description.Hostname) && matchLabels(f["label"], n.Description.Engine.Labels) &&
			matchLabels(f["node.label"], n.Spec.Labels) && (len(f["role"]) == 0 || slices.Contains(f["role"], string(n.Role))) &&
			(len(f["membership"]) == 0 || slices.Contains(f["membership"], "accepted")) {
			out = append(out, c.node(n))
		}
	}
	return out, nil
}

// NodeInspect returns a node.
func (c *Control) NodeInspect(_ context.Context, name string) (*swarm.Node, error) {
	n, err := find(c.cfg.Store.View(), "node", name, nodeID)
	if err != nil {
		return nil, err
	}
	out := c.node(n)
	return &out, nil
}

// NodeUpdate changes a node's labels, availability and role; the latter two whatever
// their case, as with Docker.
func (c *Control) NodeUpdate(ctx context.Context, id string, version uint64, asked *swarm.NodeSpec) error {
	spec := *asked
	spec.Role, spec.Availability = swarm.NodeRole(strings.ToLower(string(asked.Role))), swarm.NodeAvailability(strings.ToLower(string(asked.Availability)))
	switch {
	case !contains([]string{"worker", "manager"}, string(spec.Role)):
		return invalid("invalid Role: %q", asked.Role)
	case !contains([]string{"active", "pause", "drain"}, string(spec.Availability)):
		return invalid("invalid Availability: %q", asked.Availability)
	}
	if err := validateLabels(spec.Labels); err != nil {
		return err
	}
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		n, err := find(tx, "node", id, nodeID)
		if err != nil {
			return err
		}
		if err := store.Saw(n, version); err != nil {
			return err
		}
		if n.Spec.Role == swarm.NodeRoleManager && spec.Role == swarm.NodeRoleWorker {
			if err := c.mayDemote(tx, n); err != nil {
				return err
			}
		}
		u := *n
		u.Spec = spec
		return store.Put(tx, &u)
	})
	return err
}

// mayDemote refuses to leave the swarm without a manager, or its managers without
// a quorum. It reads all managers by id, so that of two demotions at once the
// second sees the first.
func (c *Control) mayDemote(tx *store.Tx, demoted *api.Node) error {
	var rest []*api.Node
	for n := range store.List[*api.Node](tx) {
		if n.Spec.Role == swarm.NodeRoleManager && n.ID != demoted.ID {
			rest = append(rest, store.Get[*api.Node](tx, n.ID))
		}
	}
	if len(rest) == 0 {
		return invalid("attempting to demote the last manager of the swarm")
	}
	if c.cfg.Manager == nil {
		return nil
	}
	members, reachable := 0, 0
	for _, n := range rest {
		if n.Role != swarm.NodeRoleManager || n.RaftID == 0 {
			continue // it is about to become one, and counts once it is
		}
		members++
		if c.cfg.Manager(n).Reachability == swarm.ReachabilityReachable {
			reachable++
		}
	}
	if reachable < members/2+1 {
		return api.Errorf(api.Conflict, "can't remove member from the raft: this would result in a loss of quorum: of the %d managers that would stay, %d can be reached", members, reachable)
	}
	return nil
}

// NodeRemove takes a node out of the swarm.
func (c *Control) NodeRemove(ctx context.Context, name string, force bool) error {
	now := c.cfg.Store.Now()
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		n, err := find(tx, "node", name, nodeID)
		if err != nil {
			return err
		}
		switch {
		case n.Spec.Role == swarm.NodeRoleManager || n.Role == swarm.NodeRoleManager && n.RaftID != 0:
			return invalid("node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", n.ID)
		case !force && n.Status.State == swarm.NodeStateReady:
			return invalid("node %s is not down and can't be removed: stop it, or use --force", n.ID)
		}
		for cl := range store.List[*api.Cluster](tx) {
			u := *cl
			u.Removed = map[string]time.Time{n.ID: refusedUntil(cl, n, now)}
			for id, until := range cl.Removed {
				if now.Before(until) {
					u.Removed[id] = until
				}
			}
			if err := store.Put(tx, &u); err != nil {
				return err
			}
		}
		if err := orphan(tx, n.ID, now); err != nil {
			return err
		}
		return store.Delete[*api.Node](tx, n.ID)
	})
	return err
}

// orphan ends the tasks of a node that nobody will hear of again.
func orphan(tx *store.Tx, node string, now time.Time) error {
	for t := range store.List[*api.Task](tx, store.ByNode(node)) {
		if api.Final(t.Status.State) {
			continue
		}
		c := *t
		c.Status = swarm.TaskStatus{State: swarm.TaskStateOrphaned, Timestamp: now, Message: "Task belonged to a node that has been deleted"}
		if err := store.Put(tx, &c); err != nil {
			return err
		}
	}
	return nil
}
