package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/store"
)

// balances checks, when all is quiet, where tasks go that may go anywhere: a service is
// spread evenly over nodes, and over zones if it asks for that; it is so without a
// node that is drained, and again after its return, by no more moves than that takes and
// one at a time (which pace sees).
func (c *cluster) balances(ctx context.Context) {
	for _, h := range c.hosts {
		if !c.available(ctx, h, swarm.NodeAvailabilityActive) {
			return
		}
	}
	nodes := len(c.hosts)
	replicas := 2*nodes + c.rng.IntN(nodes)
	nodewise, zonewise := spec("even-nodes", replicas), spec("even-zones", replicas)
	zonewise.TaskTemplate.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}}
	for _, s := range []*swarm.ServiceSpec{nodewise, zonewise} {
		s.Labels, s.UpdateConfig.Parallelism = map[string]string{api.RebalanceLabel: "true"}, 1
		if _, err := c.leader().control.ServiceCreate(ctx, s, control.ServiceOptions{}); err != nil {
			c.failf("make %s: %v", s.Name, err)
			return
		}
	}
	even := func() bool {
		return c.until(ctx, quietLimit, func() string {
			if what := c.unsettled(); what != "" {
				return what
			}
			view, _ := c.agreed()
			for _, s := range []*swarm.ServiceSpec{nodewise, zonewise} {
				if what := uneven(view, s); what != "" {
					return what
				}
			}
			return ""
		})
	}
	away := c.hosts[c.rng.IntN(nodes)]
	if !even() || !c.available(ctx, away, swarm.NodeAvailabilityDrain) || !even() || !c.available(ctx, away, swarm.NodeAvailabilityActive) || !even() {
		return
	}
	moves := 0
	for t := range store.List[*api.Task](c.leader().store.View()) {
		if t.Spec.ServiceName == nodewise.Name && t.MovedFrom != "" {
			moves++
		}
	}
	if most := replicas / nodes; moves > most {
		c.failf("%d of %d tasks were moved to one of %d nodes; %d make it even", moves, replicas, nodes, most)
	}
}

// available has a user set a host's availability, and returns when that is so.
func (c *cluster) available(ctx context.Context, h *host, a swarm.NodeAvailability) bool {
	return c.until(ctx, quietLimit, func() string {
		m := c.leader()
		n, err := m.control.NodeInspect(ctx, h.node())
		if err == nil && n.Spec.Availability != a {
			n.Spec.Availability = a
			err = m.control.NodeUpdate(ctx, n.ID, n.Version.Index, &n.Spec)
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

// uneven says where more of a service's tasks run than there need to.
func uneven(view *store.View, s *swarm.ServiceSpec) string {
	zonewise := s.TaskTemplate.Placement != nil
	zones, on := map[string]int{}, map[string]map[string]int{} // on: by zone and node
	for n := range store.List[*api.Node](view) {
		if n.Spec.Availability != swarm.NodeAvailabilityActive {
			continue
		}
		zone := ""
		if zonewise {
			zone = n.Spec.Labels["zone"]
		}
		if on[zone] == nil {
			on[zone] = map[string]int{}
		}
		zones[zone] += 0
		on[zone][n.ID] = 0
	}
	for t := range store.List[*api.Task](view) {
		if t.Spec.ServiceName != s.Name || !serves(t) {
			continue
		}
		zone := ""
		if zonewise {
			zone = store.Get[*api.Node](view, t.NodeID).Spec.Labels["zone"]
		}
		zones[zone]++
		on[zone][t.NodeID]++
	}
	for _, counts := range append(slices.Collect(maps.Values(on)), zones) {
		of := slices.Sorted(maps.Values(counts))
		if of[len(of)-1]-of[0] > 1 {
			return fmt.Sprintf("%s has not as many tasks on each: %v", s.Name, counts)
		}
	}
	return ""
}

// TestNoRoomToBalance: nothing is undone where a move would make a service even and no
// node has room for it; it is where one has.
func TestNoRoomToBalance(t *testing.T) {
	reserve := func(bytes int64) *swarm.ResourceRequirements {
		return &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: bytes}}
	}
	for taken, settled := range map[int64]bool{4: true, 1: false} {
		st, err := store.NewLocal(store.Config{})
		if err != nil {
			t.Fatal(err)
		}
		o, other := &api.Service{}, &api.TaskSpec{}
		o.ID, o.Spec.Name, o.SpecVersion = "web", "web", 1
		o.Spec.Labels = map[string]string{api.RebalanceLabel: "true"}
		o.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(2))}
		o.Spec.TaskTemplate.Resources, other.Resources = reserve(1), reserve(taken)
		if _, err := st.Update(t.Context(), func(tx *store.Tx) error {
			err := store.Create(tx, o)
			for _, id := range []string{"n1", "n2"} {
				n := &api.Node{}
				n.ID, n.Spec.Availability, n.Status.State = id, swarm.NodeAvailabilityActive, swarm.NodeStateReady
				n.Description.Resources.MemoryBytes = 4
				err = errors.Join(err, store.Create(tx, n))
			}
			for _, task := range []*api.Task{
				{ID: "t1", ServiceID: "web", Slot: 1, NodeID: "n1", Spec: o.TaskSpec(), SpecVersion: 1},
				{ID: "t2", ServiceID: "web", Slot: 2, NodeID: "n1", Spec: o.TaskSpec(), SpecVersion: 1},
				{ID: "t3", NodeID: "n2", Spec: other},
			} {
				task.DesiredState, task.Status.State = swarm.TaskStateRunning, swarm.TaskStateRunning
				err = errors.Join(err, store.Create(tx, task))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if what := undone(st.View(), st.Now(), 0); (what == "") != settled {
			t.Errorf("%d of 4 bytes are taken: %q", taken, what)
		}
	}
}
