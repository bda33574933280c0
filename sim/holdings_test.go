package sim

import (
	"fmt"
	"maps"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// holdings is who has what of which there is only so much, by a replica:
// addresses, ports, nodes' resources, places among the tasks of a job that run at a time.
type holdings struct {
	nodes    map[string]*api.Node
	services map[string]*api.Service
	holders  map[string]map[string]bool // of what only one may have
	reserved map[string]*[2]int64       // CPU and memory of nodes
	numbers  map[string]int64           // generic resources of nodes, by both
	jobs     map[string]map[string]*api.Task
	// What has changed since look.
	things map[string]bool
	on     map[string]bool // nodes
	of     map[string]bool // jobs
}

func newHoldings() *holdings {
	return &holdings{
		nodes: map[string]*api.Node{}, services: map[string]*api.Service{}, holders: map[string]map[string]bool{},
		reserved: map[string]*[2]int64{}, numbers: map[string]int64{}, jobs: map[string]map[string]*api.Task{},
		things: map[string]bool{}, on: map[string]bool{}, of: map[string]bool{},
	}
}

func (h *holdings) load(view *store.View) {
	for o := range store.List[*api.Network](view) {
		h.change(store.Change{ID: o.ID, New: o})
	}
	for o := range store.List[*api.Node](view) {
		h.change(store.Change{ID: o.ID, New: o})
	}
	for o := range store.List[*api.Service](view) {
		h.change(store.Change{ID: o.ID, New: o})
	}
	for o := range store.List[*api.Task](view) {
		h.change(store.Change{ID: o.ID, New: o})
	}
}

// change follows an object from one version to the next.
func (h *holdings) change(c store.Change) {
	for _, thing := range things(c.Old) {
		delete(h.holders[thing], c.ID)
		if len(h.holders[thing]) == 0 {
			delete(h.holders, thing)
		}
	}
	for _, thing := range things(c.New) {
		if h.holders[thing] == nil {
			h.holders[thing] = map[string]bool{}
		}
		h.holders[thing][c.ID] = true
		h.things[thing] = true
	}
	switch o := c.New.(type) {
	case *api.Node:
		h.nodes[c.ID] = o
	case *api.Service:
		h.services[c.ID] = o
		h.of[c.ID] = true
	}
	if was, _ := c.Old.(*api.Task); was != nil {
		h.reserve(was, -1)
		delete(h.jobs[was.ServiceID], was.ID)
	}
	if is, _ := c.New.(*api.Task); is != nil {
		h.reserve(is, 1)
		if is.JobIteration != nil && !api.Final(is.Status.State) && !api.ToldToEnd(is.DesiredState) {
			if h.jobs[is.ServiceID] == nil {
				h.jobs[is.ServiceID] = map[string]*api.Task{}
			}
			h.jobs[is.ServiceID][is.ID] = is
			h.of[is.ServiceID] = true
		}
	}
}

// things are what an object has that no other may have: addresses and ports.
func things(o any) (out []string) {
	switch o := o.(type) {
	case *api.Network:
		if o != nil && o.IPAMOptions != nil {
			for _, c := range o.IPAMOptions.Configs {
				out = append(out, fmt.Sprint("address ", o.ID, " ", c.Gateway))
			}
		}
	case *api.Service:
		if o == nil {
			return nil
		}
		// Published ports are not among them: two services may take one in the same
		// instant, and then the allocator has the last word.
		for _, v := range o.Endpoint.VirtualIPs {
			out = append(out, fmt.Sprint("address ", v.NetworkID, " ", v.Addr.Addr()))
		}
	case *api.Task:
		if o == nil || api.Final(o.Status.State) {
			return nil
		}
		for _, n := range o.Networks {
			for _, a := range n.Addresses {
				out = append(out, fmt.Sprint("address ", n.NetworkID, " ", a.Addr()))
			}
		}
		for _, p := range o.Spec.HostPorts() {
			if placed(o) && p.PublishedPort != 0 {
				out = append(out, fmt.Sprint("port ", p.PublishedPort, "/", p.Protocol, " of ", o.NodeID))
			}
		}
		for _, g := range o.GenericResources {
			if r := g.NamedResourceSpec; r != nil && placed(o) {
				out = append(out, fmt.Sprint(r.Kind, " ", r.Value, " of ", o.NodeID))
			}
		}
	}
	return out
}

// placed reports whether a task takes room on a node.
func placed(t *api.Task) bool {
	return t.NodeID != "" && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) && !api.Final(t.Status.State)
}

func (h *holdings) reserve(t *api.Task, sign int64) {
	if placed(t) {
		for _, g := range t.GenericResources {
			if r := g.DiscreteResourceSpec; r != nil {
				h.numbers[t.NodeID+" "+r.Kind] += sign * r.Value
				h.on[t.NodeID] = true
			}
		}
	}
	if !placed(t) || t.Spec.Resources == nil || t.Spec.Resources.Reservations == nil {
		return
	}
	if h.reserved[t.NodeID] == nil {
		h.reserved[t.NodeID] = &[2]int64{}
	}
	r := h.reserved[t.NodeID]
	r[0] += sign * t.Spec.Resources.Reservations.NanoCPUs
	r[1] += sign * t.Spec.Resources.Reservations.MemoryBytes
	h.on[t.NodeID] = true
}

// look says what is not as it must be of what has changed.
func (h *holdings) look() string {
	defer func() { clear(h.things); clear(h.on); clear(h.of) }()
	for thing := range h.things {
		if who := h.holders[thing]; len(who) > 1 {
			return fmt.Sprintf("%s is had by %v", thing, slices.Sorted(maps.Keys(who)))
		}
	}
	for id := range h.on {
		n, r := h.nodes[id], h.reserved[id]
		if r == nil {
			r = &[2]int64{}
		}
		if n == nil || n.Description.Resources.NanoCPUs == 0 {
			continue
		}
		if have := n.Description.Resources; r[0] > have.NanoCPUs || r[1] > have.MemoryBytes {
			return fmt.Sprintf("%s has %d CPU and %d bytes, of which %d and %d are reserved", id, have.NanoCPUs, have.MemoryBytes, r[0], r[1])
		}
		for _, g := range n.Description.Resources.GenericResources {
			if d := g.DiscreteResourceSpec; d != nil && h.numbers[id+" "+d.Kind] > d.Value {
				return fmt.Sprintf("%s has %d of %s, of which %d are reserved", id, d.Value, d.Kind, h.numbers[id+" "+d.Kind])
			}
		}
		if k := h.numbers[id+" "+gpu]; k != 0 {
			return fmt.Sprintf("%d of %s on %s are given out by number", k, gpu, id)
		}
	}
	for id := range h.of {
		s := h.services[id]
		if s == nil || s.Spec.Mode.ReplicatedJob == nil {
			continue
		}
		var live []string
		for _, t := range h.jobs[id] {
			if s.Iteration(t) {
				live = append(live, t.ID)
			}
		}
		if most := *s.Spec.Mode.ReplicatedJob.MaxConcurrent; uint64(len(live)) > most {
			return fmt.Sprintf("%d tasks of job %s are to run at a time, not %d: %v", len(live), s.Spec.Name, most, live)
		}
	}
	return ""
}
