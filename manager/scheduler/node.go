package scheduler

import (
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// node is a node with what its tasks take.
type node struct {
	*api.Node
	cpu, memory int64               // reserved, in Docker's units
	generic     map[string]int64    // reserved, by kind; of named resources: how many
	named       map[string]struct{} // reserved, kind=value
	ports       map[port]int
	services    map[string]int         // tasks, by service
	leaving     map[string]int         // those of them that are on their way out; nil: none
	failures    map[string][]time.Time // recent, by group

	// Kept by loads.
	tasks int
	place int // in its load's slice
}

type port struct {
	number   uint32
	protocol network.IPProtocol
}

func newNode(n *api.Node) *node {
	return &node{Node: n, generic: map[string]int64{}, named: map[string]struct{}{}, ports: map[port]int{}, services: map[string]int{}}
}

// count counts what a task takes in (sign 1) or out (sign -1).
func (n *node) count(t *api.Task, sign int) {
	n.services[t.ServiceID] += sign
	if n.services[t.ServiceID] == 0 {
		delete(n.services, t.ServiceID)
	}
	if leaving(t) {
		n.leave(t.ServiceID, sign)
	}
	if r := t.Spec.Resources; r != nil && r.Reservations != nil {
		n.cpu += int64(sign) * r.Reservations.NanoCPUs
		n.memory += int64(sign) * r.Reservations.MemoryBytes
	}
	for _, g := range t.GenericResources {
		n.countGeneric(g, sign)
	}
	for _, c := range t.Spec.HostPorts() {
		if c.PublishedPort == 0 {
			continue
		}
		p := port{c.PublishedPort, c.Protocol}
		n.ports[p] += sign
		if n.ports[p] == 0 {
			delete(n.ports, p)
		}
	}
}

// leave counts a task as on its way out (sign 1) or not any more (sign -1).
func (n *node) leave(service string, sign int) {
	if n.leaving == nil {
		n.leaving = map[string]int{}
	}
	if n.leaving[service] += sign; n.leaving[service] == 0 {
		delete(n.leaving, service)
	}
}

// of is how many tasks of a service stay on the node. Those that leave take room
// until they have ended, but others are not spread around them.
func (n *node) of(service string) int { return n.services[service] - n.leaving[service] }

func (n *node) countGeneric(g swarm.GenericResource, sign int) {
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

// A node on which a service's tasks failed this often within the time comes
// last for it: SwarmKit's numbers.
const (
	maxFailures   = 5
	failureMemory = 5 * time.Minute
)

func (n *node) fail(group string, now time.Time) {
	if n.failures == nil {
		n.failures = map[string][]time.Time{}
	}
	for k, f := range n.failures { // what is old is of no use, and services come and go
		if now.Sub(f[len(f)-1]) >= failureMemory {
			delete(n.failures, k)
		}
	}
	f := append(n.failures[group], now)
	n.failures[group] = f[max(0, len(f)-maxFailures):]
}

// failing reports whether the group's tasks keep failing on the node.
func (n *node) failing(group string, now time.Time) bool {
	if len(n.failures) == 0 {
		return false
	}
	f := n.failures[group]
	return len(f) >= maxFailures && now.Sub(f[0]) < failureMemory
}

// loads has the nodes by how many tasks each has, so that the emptiest are
// found without looking at all.
type loads [][]*node

func (l *loads) add(n *node) {
	for len(*l) <= n.tasks {
		*l = append(*l, nil)
	}
	n.place = len((*l)[n.tasks])
	(*l)[n.tasks] = append((*l)[n.tasks], n)
}

func (l loads) remove(n *node) {
	at := l[n.tasks]
	last := at[len(at)-1]
	at[n.place], last.place = last, n.place
	at[len(at)-1] = nil
	l[n.tasks] = at[:len(at)-1]
}

func (l *loads) move(n *node, by int) {
	l.remove(n)
	n.tasks += by
	l.add(n)
}
