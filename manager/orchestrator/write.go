package orchestrator

import (
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// behind reports whether a plan ends tasks because of nodes that are not any more what
// it took them for: the change is on its way to the loop, and has the service planned
// again. It makes the transaction depend on those nodes, so that one which is back when
// the plan is written keeps its tasks, however long that takes.
func behind(tx *store.Tx, in *Input, out *Output) bool {
	checked := map[string]bool{}
	for _, t := range in.Tasks {
		planned := in.Nodes[t.NodeID]
		switch {
		case planned == nil, checked[t.NodeID], in.Service == nil, api.Final(t.Status.State), !api.ToldToEnd(out.Desired[t.ID]):
			continue
		case usable(planned) && out.Evicted[t.ID] == "":
			continue // it is not because of the node
		}
		checked[t.NodeID] = true
		if n := store.Get[*api.Node](tx, t.NodeID); n == nil || n != planned && !sameForPlans(planned, n) {
			return true
		}
	}
	return false
}

func usable(n *api.Node) bool {
	return n.Status.State != swarm.NodeStateDown && n.Spec.Availability != swarm.NodeAvailabilityDrain
}

// write puts a service's plan in the transaction.
func write(tx *store.Tx, in *Input, out *Output) error {
	orphaned := out.orphaned()
	for _, t := range in.Tasks {
		desired, ok := out.Desired[t.ID]
		// Nodes may be behind the transaction, and not have one that has just joined.
		orphan := orphaned[t.ID] && store.Get[*api.Node](tx, t.NodeID) == nil
		if !ok && !orphan {
			continue
		}
		c := *t
		if ok {
			c.DesiredState = desired
		}
		if why := out.Evicted[t.ID]; why != "" {
			c.Evicted = why
		}
		if orphan {
			c.Status = swarm.TaskStatus{State: swarm.TaskStateOrphaned, Timestamp: in.Now, Message: "Task belonged to a node that has been deleted"}
		}
		if err := store.Put(tx, &c); err != nil {
			return err
		}
	}
	for _, t := range out.Create {
		if err := store.Create(tx, t); err != nil {
			return err
		}
	}
	for _, id := range out.Delete {
		if err := store.Delete[*api.Task](tx, id); err != nil {
			return err
		}
	}
	if out.Update == nil {
		return nil
	}
	if err := store.Put(tx, out.Update); err != nil {
		return err
	}
	return Archive(tx, in.Service, out.Update)
}
