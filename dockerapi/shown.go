package dockerapi

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
)

// What Docker always shows of the swarm's objects though nobody said it: labels
// are {} and not null, a service names its runtime, a container its isolation.
// The objects are shared and never edited: what is filled in is a copy.

func shownNode(in *swarm.Node) *swarm.Node {
	n := *in
	n.Spec.Labels = someMap(n.Spec.Labels)
	return &n
}

func shownCluster(in *swarm.ClusterInfo) *swarm.ClusterInfo {
	c := *in
	c.Spec.Labels = someMap(c.Spec.Labels)
	return &c
}

func shownConfig(in *swarm.Config) *swarm.Config {
	o := *in
	o.Spec.Labels = someMap(o.Spec.Labels)
	return &o
}

func shownTaskSpec(s swarm.TaskSpec) swarm.TaskSpec {
	if c := s.ContainerSpec; c != nil && c.Isolation == "" {
		filled := *c
		filled.Isolation = container.IsolationDefault
		s.ContainerSpec = &filled
	}
	return s
}

func shownServiceSpec(s *swarm.ServiceSpec) {
	s.Labels = someMap(s.Labels)
	s.TaskTemplate = shownTaskSpec(s.TaskTemplate)
	if s.TaskTemplate.ContainerSpec != nil && s.TaskTemplate.Runtime == "" {
		s.TaskTemplate.Runtime = swarm.RuntimeContainer
	}
}

// unsaid takes out of a wanted spec what only shownServiceSpec may have filled
// in, so that a spec sent back as it was shown is no change.
func unsaid(s *swarm.ServiceSpec) {
	if s.TaskTemplate.Runtime == swarm.RuntimeContainer {
		s.TaskTemplate.Runtime = ""
	}
	if c := s.TaskTemplate.ContainerSpec; c != nil && c.Isolation == container.IsolationDefault {
		c.Isolation = ""
	}
}
