package scheduler

import (
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// State is what the scheduler knows of the nodes and of what runs on them. It
// belongs to one goroutine.
type State struct {
	nodes map[string]*node
	tasks map[string]*api.Task // that hold something on a node
}

// node is a node with what its tasks take.
type node struct {
	*api.Node
	cpu, memory int64               // reserved, in Docker's units
	generic     map[string]int64    // reserved, by kind; of named resources: how many
	named       map[string]struct{} // reserved, kind=value
	ports       map[port]int
	tasks       int
	services    map[string]int
	failures    map[string][]time.Time // recent, by service and spec version
}

type port struct {
	number   uint32
	protocol string
}

// New returns an empty state.
func New() *State { return &State{nodes: map[string]*node{}, tasks: map[string]*api.Task{}} }

// SetNode adds a node, or takes its new version.
func (s *State) SetNode(n *api.Node) {
	if have := s.nodes[n.ID]; have != nil {
		have.Node = n
		return
	}
	s.nodes[n.ID] = &node{
		Node: n, generic: map[string]int64{}, named: map[string]struct{}{}, ports: map[port]int{},
		services: map[string]int{}, failures: map[string][]time.Time{},
	}
	for _, t := range s.tasks {
		if t.NodeID == n.ID {
			s.nodes[n.ID].add(t, 1)
		}
	}
}

// RemoveNode forgets a node.
func (s *State) RemoveNode(id string) { delete(s.nodes, id) }

// SetTask takes a task's new version; nil with its id: it was deleted. A task
// takes room on its node from the moment it is assigned until it has ended.
func (s *State) SetTask(id string, t *api.Task, now time.Time) {
	old := s.tasks[id]
	holds := t != nil && t.NodeID != "" && !api.Final(t.Status.State) && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned)
	if old != nil && (!holds || old.NodeID != t.NodeID) {
		if n := s.nodes[old.NodeID]; n != nil {
			n.add(old, -1)
			if t != nil && failed(t) {
				n.fail(t, now)
			}
		}
		delete(s.tasks, id)
		old = nil
	}
	if !holds {
		return
	}
	s.tasks[id] = t
	if old == nil {
		if n := s.nodes[t.NodeID]; n != nil {
			n.add(t, 1)
		}
	}
}

func failed(t *api.Task) bool {
	return t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected
}

// add counts a task in (sign 1) or out (sign -1).
func (n *node) add(t *api.Task, sign int) {
	n.tasks += sign
	n.services[t.ServiceID] += sign
	if n.services[t.ServiceID] == 0 {
		delete(n.services, t.ServiceID)
	}
	if r := t.Spec.Resources; r != nil && r.Reservations != nil {
		n.cpu += int64(sign) * r.Reservations.NanoCPUs
		n.memory += int64(sign) * r.Reservations.MemoryBytes
	}
	for _, g := range t.GenericResources {
		switch {
		case g.NamedResourceSpec != nil:
			key := g.NamedResourceSpec.Kind + "=" + g.NamedResourceSpec.Value
			n.generic[g.NamedResourceSpec.Kind] += int64(sign)
			if sign > 0 {
				n.named[key] = struct{}{}
			} else {
				delete(n.named, key)
			}
		case g.DiscreteResourceSpec != nil:
			n.generic[g.DiscreteResourceSpec.Kind] += int64(sign) * g.DiscreteResourceSpec.Value
		}
	}
	for _, p := range hostPorts(t.Spec) {
		n.ports[p] += sign
		if n.ports[p] == 0 {
			delete(n.ports, p)
		}
	}
}

// hostPorts are the ports that a task takes on its node itself.
func hostPorts(s *api.TaskSpec) []port {
	if s.Endpoint == nil {
		return nil
	}
	var out []port
	for _, p := range s.Endpoint.Ports {
		if p.PublishMode == swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
			out = append(out, port{p.PublishedPort, string(p.Protocol)})
		}
	}
	return out
}

// A node on which a service's tasks failed this often within the time comes
// last for it: SwarmKit's numbers.
const (
	maxFailures   = 5
	failureMemory = 5 * time.Minute
)

func failureKey(t *api.Task) string { return t.ServiceID + "/" + strconv.FormatUint(t.SpecVersion, 10) }

func (n *node) fail(t *api.Task, now time.Time) {
	k := failureKey(t)
	recent := append(n.failures[k], now)
	if len(recent) > maxFailures {
		recent = recent[len(recent)-maxFailures:]
	}
	n.failures[k] = recent
}

// failing reports whether the service's tasks keep failing on the node.
func (n *node) failing(key string, now time.Time) bool {
	f := n.failures[key]
	return len(f) >= maxFailures && now.Sub(f[0]) < failureMemory
}
