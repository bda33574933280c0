package scheduler

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// filter is a reason for which a node can't take a task.
type filter int

// In the order in which they are asked; the first that refuses is told.
const (
	ready filter = iota
	resources
	plugins
	constraints
	platform
	hostPorts
	maxReplicas
	affinity // and on: the group's rules, by number
	filters  = affinity + maxRules
	passed   = -1 // by all
)

// maxRules bounds the affinities that are told apart when refusals are counted.
const maxRules = 16

// explain says, in Docker's words, on how many nodes the filter refused a task.
func (g *group) explain(f filter, nodes int) string {
	on := fmt.Sprintf("%d nodes", nodes)
	if nodes == 1 {
		on = "1 node"
	}
	switch f {
	case ready:
		return on + " not available for new tasks"
	case resources:
		return "insufficient resources on " + on
	case plugins:
		return "missing plugin on " + on
	case constraints:
		return "scheduling constraints not satisfied on " + on
	case platform:
		return "unsupported platform on " + on
	case hostPorts:
		return "host-mode port already in use on " + on
	case maxReplicas:
		return "max replicas per node limit exceed on " + on
	default:
		return g.rules[f-affinity].explain(on)
	}
}

// refusals counts the nodes that each filter turned away.
type refusals [filters]int

func (r *refusals) explain(g *group) string {
	order := make([]filter, 0, filters)
	for f := range filters {
		if r[f] > 0 {
			order = append(order, f)
		}
	}
	slices.SortStableFunc(order, func(a, b filter) int { return r[b] - r[a] })
	why := make([]string, 0, len(order))
	for _, f := range order {
		why = append(why, g.explain(f, r[f]))
	}
	if len(why) == 0 {
		return "no suitable node (the swarm has no nodes)"
	}
	return "no suitable node (" + strings.Join(why, "; ") + ")"
}

// group is a set of tasks that are alike: the same service and spec.
type group struct {
	spec        *api.TaskSpec
	key         string
	service     string
	constraints []api.Constraint
	ports       []port
	drivers     []plugin
	reserve     swarm.Resources
	maxReplicas int
	spread      []string // keys of node attributes, outermost first
	claims      bool     // generic resources

	// By the labels of ours.
	state    *State
	name     string // the service's, in lower case, if there are rules
	rules    []rule
	strategy api.Strategy
	priority int
}

type plugin struct{ kind, name string }

func (s *State) newGroup(t *api.Task) *group {
	g := &group{state: s, spec: t.Spec, key: groupKey(t), service: t.ServiceID}
	if g.service == "" {
		g.service = t.ID // nothing else is of its kind
	}
	if p := t.Spec.Placement; p != nil {
		g.constraints, _ = api.ParseConstraints(p.Constraints) // checked when the service was written
		g.maxReplicas = int(p.MaxReplicas)
		for _, p := range p.Preferences {
			if p.Spread != nil {
				g.spread = append(g.spread, p.Spread.SpreadDescriptor)
			}
		}
	}
	if r := t.Spec.Resources; r != nil && r.Reservations != nil {
		g.reserve = *r.Reservations
		g.claims = len(g.reserve.GenericResources) > 0
	}
	for _, p := range t.Spec.HostPorts() {
		if p.PublishedPort != 0 {
			g.ports = append(g.ports, port{p.PublishedPort, p.Protocol})
		}
	}
	g.drivers = needs(&t.Spec.TaskSpec)
	g.strategy = api.Spread
	if len(t.Spec.ServiceLabels) > 0 {
		policy, _ := api.ParsePolicy(t.Spec.ServiceLabels) // checked when the service was written
		g.strategy, g.priority = policy.Strategy, policy.Priority
		g.rules = s.rulesOf(g, policy.Affinity)
	}
	return g
}

// needs are the plugins that a task uses, besides what every node has.
func needs(s *swarm.TaskSpec) []plugin {
	var out []plugin
	if s.ContainerSpec != nil {
		for _, m := range s.ContainerSpec.Mounts {
			if m.Type == mount.TypeVolume && m.VolumeOptions != nil && m.VolumeOptions.DriverConfig != nil &&
				m.VolumeOptions.DriverConfig.Name != "" && m.VolumeOptions.DriverConfig.Name != "local" {
				out = append(out, plugin{"Volume", m.VolumeOptions.DriverConfig.Name})
			}
		}
	}
	if l := s.LogDriver; l != nil && !slices.Contains([]string{"", "none", "json-file", "local"}, l.Name) {
		out = append(out, plugin{"Log", l.Name})
	}
	return out
}

// refusal returns the first filter that refuses the node, or passed.
func (g *group) refusal(n *node) filter {
	switch {
	case n.Status.State != swarm.NodeStateReady || n.Spec.Availability != swarm.NodeAvailabilityActive:
		return ready
	case !g.fits(n):
		return resources
	case len(g.drivers) > 0 && !g.plugged(n):
		return plugins
	case len(g.constraints) > 0 && !api.MatchAll(g.constraints, n.Node):
		return constraints
	case g.spec.Placement != nil && !api.MatchPlatform(g.spec.Placement.Platforms, n.Node):
		return platform
	case len(g.ports) > 0 && slices.ContainsFunc(g.ports, func(p port) bool { return n.ports[p] > 0 }):
		return hostPorts
	case g.maxReplicas > 0 && n.of(g.service) >= g.maxReplicas:
		return maxReplicas
	}
	if len(g.rules) > 0 {
		if i := g.apart(n); i >= 0 {
			return affinity + filter(i)
		}
	}
	return passed
}

func (g *group) fits(n *node) bool {
	have := &n.Description.Resources
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

// plugged reports whether the node has the drivers. Names compare with and
// without the tag "latest", as Docker's do.
func (g *group) plugged(n *node) bool {
	for _, want := range g.drivers {
		if !slices.ContainsFunc(n.Description.Engine.Plugins, func(p swarm.PluginDescription) bool {
			return p.Type == want.kind && strings.TrimSuffix(p.Name, ":latest") == strings.TrimSuffix(want.name, ":latest")
		}) {
			return false
		}
	}
	return true
}

// claim gives out generic resources of the node for one task that fits.
func (g *group) claim(n *node) []swarm.GenericResource {
	if !g.claims {
		return nil
	}
	var out []swarm.GenericResource
	for _, want := range g.reserve.GenericResources {
		if d := want.DiscreteResourceSpec; d != nil {
			out = append(out, n.claim(d)...)
		}
	}
	return out
}

// claim takes free names of the kind first, the rest as a number.
func (n *node) claim(want *swarm.DiscreteGenericResource) []swarm.GenericResource {
	var out []swarm.GenericResource
	left := want.Value
	for _, r := range n.Description.Resources.GenericResources {
		if left == 0 {
			break
		}
		if r.NamedResourceSpec == nil || r.NamedResourceSpec.Kind != want.Kind {
			continue
		}
		if _, taken := n.named[want.Kind+"="+r.NamedResourceSpec.Value]; !taken {
			out = append(out, r)
			left--
		}
	}
	if left > 0 {
		out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: want.Kind, Value: left}})
	}
	return out
}

// changed reports whether a node differs in anything that filters look at.
func changed(a, b *api.Node) bool {
	return a.Status.State != b.Status.State || a.Status.Addr != b.Status.Addr || a.Spec.Availability != b.Spec.Availability || a.Role != b.Role ||
		!maps.Equal(a.Spec.Labels, b.Spec.Labels) || !reflect.DeepEqual(a.Description, b.Description)
}
