package scheduler

import (
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// filter says whether a task may run on a node, and in words of Docker's why
// not on how many.
type filter struct {
	check   func(g *group, n *node) bool
	explain func(nodes int) string
}

// group is a set of tasks that are alike: the same service and spec.
type group struct {
	spec        *api.TaskSpec
	service     string
	key         string
	constraints []Constraint
	ports       []port
	reserve     swarm.Resources
	maxReplicas int
}

func newGroup(t *api.Task) *group {
	g := &group{spec: t.Spec, service: t.ServiceID, key: failureKey(t), ports: hostPorts(t.Spec)}
	if p := t.Spec.Placement; p != nil {
		g.constraints, _ = ParseConstraints(p.Constraints) // checked when the service was written
		g.maxReplicas = int(p.MaxReplicas)
	}
	if r := t.Spec.Resources; r != nil && r.Reservations != nil {
		g.reserve = *r.Reservations
	}
	return g
}

func counted(one string) func(int) string {
	return func(n int) string {
		s := "s"
		if n == 1 {
			s = ""
		}
		return fmt.Sprintf(one, n, s)
	}
}

// filters in the order in which they are asked; the first that refuses is the
// one that is told.
func filters() []filter {
	return []filter{
		{check: (*group).ready, explain: counted("%d node%s not available for new tasks")},
		{check: (*group).resources, explain: counted("insufficient resources on %d node%s")},
		{check: (*group).constrained, explain: counted("scheduling constraints not satisfied on %d node%s")},
		{check: (*group).platform, explain: counted("unsupported platform on %d node%s")},
		{check: (*group).hostPorts, explain: counted("host-mode port already in use on %d node%s")},
		{check: (*group).replicas, explain: counted("max replicas per node limit exceed on %d node%s")},
	}
}

func (g *group) ready(n *node) bool {
	return n.Status.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive
}

func (g *group) resources(n *node) bool {
	have := n.Description.Resources
	if g.reserve.NanoCPUs > 0 && have.NanoCPUs-n.cpu < g.reserve.NanoCPUs ||
		g.reserve.MemoryBytes > 0 && have.MemoryBytes-n.memory < g.reserve.MemoryBytes {
		return false
	}
	for _, want := range g.reserve.GenericResources {
		if d := want.DiscreteResourceSpec; d != nil && total(have.GenericResources, d.Kind)-n.generic[d.Kind] < d.Value {
			return false
		}
	}
	return true
}

// total counts a generic resource: a discrete one's value, or how many names
// there are.
func total(have []swarm.GenericResource, kind string) int64 {
	var n int64
	for _, r := range have {
		switch {
		case r.DiscreteResourceSpec != nil && r.DiscreteResourceSpec.Kind == kind:
			n += r.DiscreteResourceSpec.Value
		case r.NamedResourceSpec != nil && r.NamedResourceSpec.Kind == kind:
			n++
		}
	}
	return n
}

func (g *group) constrained(n *node) bool { return MatchAll(g.constraints, n.Node) }

func (g *group) platform(n *node) bool {
	if g.spec.Placement == nil || len(g.spec.Placement.Platforms) == 0 {
		return true
	}
	have := n.Description.Platform
	for _, p := range g.spec.Placement.Platforms {
		if (p.OS == "" || strings.EqualFold(p.OS, have.OS)) && (p.Architecture == "" || strings.EqualFold(arch(p.Architecture), arch(have.Architecture))) {
			return true
		}
	}
	return false
}

func (g *group) hostPorts(n *node) bool {
	for _, p := range g.ports {
		if n.ports[p] > 0 {
			return false
		}
	}
	return true
}

func (g *group) replicas(n *node) bool {
	return g.maxReplicas == 0 || n.services[g.service] < g.maxReplicas
}

// take gives out generic resources of the node for one task.
func (g *group) take(n *node) []swarm.GenericResource {
	var out []swarm.GenericResource
	for _, want := range g.reserve.GenericResources {
		d := want.DiscreteResourceSpec
		if d == nil {
			continue
		}
		left := d.Value
		for _, r := range n.Description.Resources.GenericResources {
			switch {
			case r.DiscreteResourceSpec != nil && r.DiscreteResourceSpec.Kind == d.Kind:
				out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: d.Kind, Value: d.Value}})
				left = 0
			case left > 0 && r.NamedResourceSpec != nil && r.NamedResourceSpec.Kind == d.Kind:
				if _, taken := n.named[d.Kind+"="+r.NamedResourceSpec.Value]; !taken {
					out = append(out, r)
					left--
				}
			}
		}
	}
	return out
}
