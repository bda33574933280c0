package allocator

import (
	"context"
	"maps"
	"slices"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// maxNodes bounds how many nodes one transaction changes.
const maxNodes = 500

func (s *session) noteNode(c *store.Change) {
	was, _ := c.Old.(*api.Node)
	is, _ := c.New.(*api.Node)
	s.addresses.ChangeNode(was, is)
	switch {
	case is == nil:
		delete(s.nodes, c.ID)
		s.waitingNodes.remove(c.ID)
	case is.IngressNetwork != s.addresses.ingress && s.waitingNodes.of[c.ID] == "":
		s.nodes[c.ID] = struct{}{}
	}
}

// everyNode has all nodes looked at: there is another ingress network, or none.
func (s *session) everyNode() {
	s.waitingNodes.all()
	for n := range store.List[*api.Node](s.Store.View()) {
		s.nodes[n.ID] = struct{}{}
	}
}

// allocateNodes gives nodes their addresses in the ingress network, and takes away
// those of one that is gone. It takes everything out of the set.
func (s *session) allocateNodes(ctx context.Context) error {
	ids := slices.Sorted(maps.Keys(s.nodes))
	clear(s.nodes)
	for len(ids) > 0 {
		n := min(len(ids), maxNodes)
		if err := s.allocateSomeNodes(ctx, ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// allocateSomeNodes does so in halves if the store won't take them at once.
func (s *session) allocateSomeNodes(ctx context.Context, ids []string) error {
	var undo []func()
	var without []string
	var refused error
	_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
		revert(&undo)
		without, refused = without[:0], nil
		for _, id := range ids {
			n := store.Get[*api.Node](tx, id)
			if n == nil {
				continue
			}
			c, err := Node(n, s.addresses)
			if err != nil {
				without, refused = append(without, id), err
				continue
			}
			if c == nil {
				continue
			}
			undo = append(undo, func() { s.addresses.change(heldByNode(c), nil) })
			if err := store.Put(tx, c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		revert(&undo)
	}
	if half := len(ids) / 2; half > 0 && api.Is(err, api.ResourceExhausted) {
		if err := s.allocateSomeNodes(ctx, ids[:half]); err != nil {
			return err
		}
		return s.allocateSomeNodes(ctx, ids[half:])
	}
	for _, id := range without {
		s.waitingNodes.add(fullNetwork(refused), id)
	}
	if refused != nil {
		s.Log.WarnContext(ctx, "nodes can't answer for published ports: the ingress network has no address for them; make it anew with a larger subnet", "nodes", len(s.waitingNodes.of), "err", refused)
	}
	return err
}

// removeEnded deletes attachments whose node is lost: nobody starts them again, and
// they are no part of any history.
func (s *session) removeEnded(ctx context.Context) error {
	ids := slices.Sorted(maps.Keys(s.ended))
	clear(s.ended)
	for len(ids) > 0 {
		n := min(len(ids), maxTasks)
		_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
			for _, id := range ids[:n] {
				if t := store.Get[*api.Task](tx, id); t != nil && t.Attachment() && api.Final(t.Status.State) {
					if err := store.Delete[*api.Task](tx, id); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}
