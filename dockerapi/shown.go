package dockerapi

import (
	"cmp"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
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

// settle makes a wanted spec what is stored. What only shownServiceSpec may have
// filled in is taken out, so that a spec sent back as it was shown is no change;
// of the parts that are there, what Docker reads an empty value as is put in.
func settle(s *swarm.ServiceSpec) {
	if s.TaskTemplate.Runtime == swarm.RuntimeContainer {
		s.TaskTemplate.Runtime = ""
	}
	if c := s.TaskTemplate.ContainerSpec; c != nil {
		if c.Isolation == container.IsolationDefault {
			c.Isolation = ""
		}
		for i := range c.Mounts {
			word(&c.Mounts[i].Type, mount.TypeBind)
		}
	}
	if r := s.TaskTemplate.RestartPolicy; r != nil {
		if s.Mode.ReplicatedJob == nil && s.Mode.GlobalJob == nil {
			r.Condition = cmp.Or(r.Condition, swarm.RestartPolicyConditionAny)
		}
		if r.MaxAttempts == nil {
			r.MaxAttempts = new(uint64)
		}
	}
	for _, u := range []*swarm.UpdateConfig{s.UpdateConfig, s.RollbackConfig} {
		if u != nil {
			u.FailureAction = cmp.Or(u.FailureAction, swarm.UpdateFailureActionPause)
			u.Order = cmp.Or(u.Order, swarm.UpdateOrderStopFirst)
		}
	}
	if e := s.EndpointSpec; e != nil {
		word(&e.Mode, swarm.ResolutionModeVIP)
		for i := range e.Ports {
			word(&e.Ports[i].Protocol, network.TCP)
			word(&e.Ports[i].PublishMode, swarm.PortConfigPublishModeIngress)
		}
	}
}

// word is one of a few known ones, in any case, with a default.
func word[T ~string](w *T, none T) { *w = cmp.Or(T(strings.ToLower(string(*w))), none) }
