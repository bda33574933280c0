package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// rule is an affinity with the ids of the services that bear the name: one, as a
// rule, and those that are being removed.
type rule struct {
	api.Affinity
	services []string
	self     bool
}

// here reports whether the node has tasks of the rule's service.
func (r *rule) here(n *node) bool {
	return slices.ContainsFunc(r.services, func(id string) bool { return n.services[id] > 0 })
}

// met reports whether the node is as the rule has it. A service's affinity to
// itself is met everywhere as long as it has no task: the first goes where it likes.
func (g *group) met(r *rule, n *node) bool {
	switch {
	case r.here(n):
		return !r.Apart
	case r.Apart:
		return true
	}
	return r.self && len(g.state.names[g.name]) == 0
}

// apart returns the first hard rule that the node does not meet; -1 if there is none.
func (g *group) apart(n *node) int {
	for i := range g.rules {
		if r := &g.rules[i]; !r.Soft && !g.met(r, n) {
			return i
		}
	}
	return -1
}

// liking counts the soft rules that the node meets.
func (g *group) liking(n *node) int {
	likes := 0
	for i := range g.rules {
		if r := &g.rules[i]; r.Soft && r.here(n) != r.Apart {
			likes++
		}
	}
	return likes
}

func (r *rule) explain(on string) string {
	if r.Apart {
		return fmt.Sprintf("anti-affinity to service %s not satisfied on %s", r.Service, on)
	}
	return fmt.Sprintf("affinity to service %s not satisfied on %s", r.Service, on)
}

// rulesOf resolves the names in a service's affinities.
func (s *State) rulesOf(g *group, affinities []api.Affinity) []rule {
	if len(affinities) == 0 {
		return nil
	}
	s.track()
	g.name = strings.ToLower(g.spec.ServiceName)
	out := make([]rule, len(affinities))
	for i, a := range affinities {
		name := strings.ToLower(a.Service)
		out[i] = rule{Affinity: a, services: s.names[name], self: name == g.name}
		if out[i].self && !slices.Contains(out[i].services, g.service) {
			out[i].services = append(slices.Clone(out[i].services), g.service)
		}
	}
	return out
}

// track begins to keep names: not before a service asks where another is.
func (s *State) track() {
	if s.names != nil {
		return
	}
	s.names, s.spread = map[string][]string{}, map[string]*presence{}
	known := map[string]string{}
	for t := range s.tasks.all() {
		known[t.ServiceID] = t.Spec.ServiceName
	}
	for _, p := range s.promises {
		known[p.task.ServiceID] = p.task.Spec.ServiceName
	}
	for _, n := range s.nodes {
		for service := range n.services {
			s.appear(service, known[service])
		}
	}
}

// presence is on how many nodes a service has tasks.
type presence struct {
	name  string // in lower case
	nodes int
}

// appear and vanish keep names: the ids of the services that have tasks, by name.
func (s *State) appear(service, name string) {
	p := s.spread[service]
	if p == nil {
		p = &presence{name: strings.ToLower(name)}
		s.spread[service] = p
		if p.name != "" { // only tasks without a service have none
			s.names[p.name] = append(slices.Clone(s.names[p.name]), service)
		}
	}
	p.nodes++
	s.news = true
}

func (s *State) vanish(service string) {
	p := s.spread[service]
	if p.nodes--; p.nodes > 0 {
		return
	}
	delete(s.spread, service)
	if p.name == "" {
		return
	}
	left := slices.DeleteFunc(slices.Clone(s.names[p.name]), func(id string) bool { return id == service })
	if len(left) == 0 {
		delete(s.names, p.name)
	} else {
		s.names[p.name] = left
	}
}
