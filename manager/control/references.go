package control

import (
	"maps"
	"slices"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/rotator"
	"github.com/legion-swarm/legion/store"
)

// resolve returns a service's spec as it is kept: the mode filled in, networks
// named by id. Invalid: something that it refers to is not there. The parts that
// it changes are copies.
func resolve(r store.Reader, in *swarm.ServiceSpec) (swarm.ServiceSpec, error) {
	s := *Complete(in)
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if c := s.TaskTemplate.ContainerSpec; c != nil {
		if err := files(r, c); err != nil {
			return s, err
		}
		if rotator.Rotates(&s) { // at once, not by a second update
			s, _ = rotator.Apply(&s, rotator.Read(r), time.Time{})
		}
	}
	given := s.TaskTemplate.Networks
	s.TaskTemplate.Networks = given[:0:0]
	var nets []*api.Network
	at := map[string]int{}
	for _, n := range given {
		found, err := find(r, "network", n.Target, networkID)
		if err != nil {
			return s, invalid("network %s not found in the swarm: a service needs a network of scope swarm, or host, bridge or none", n.Target)
		}
		n.Target = found.ID
		if i, again := at[n.Target]; again { // Docker takes it
			s.TaskTemplate.Networks[i] = bothOf(s.TaskTemplate.Networks[i], n)
			continue
		}
		at[n.Target] = len(nets)
		s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, n)
		nets = append(nets, found)
	}
	return s, attachable(r, &s, nets)
}

// bothOf is what a service wants of a network that it names twice: all the aliases,
// and of two values of an option the second.
func bothOf(a, b swarm.NetworkAttachmentConfig) swarm.NetworkAttachmentConfig {
	a.Aliases = slices.Concat(a.Aliases, slices.DeleteFunc(slices.Clone(b.Aliases), func(name string) bool { return slices.Contains(a.Aliases, name) }))
	if len(b.DriverOpts) > 0 {
		opts := map[string]string{}
		maps.Copy(opts, a.DriverOpts)
		maps.Copy(opts, b.DriverOpts)
		a.DriverOpts = opts
	}
	return a
}

// files checks that secrets and configs are there, under the names given.
func files(r store.Reader, c *swarm.ContainerSpec) error {
	for _, ref := range c.Secrets {
		if s := store.Get[*api.Secret](r, ref.SecretID); s == nil || s.Spec.Name != ref.SecretName {
			return invalid("secret not found: %s (%s)", ref.SecretName, ref.SecretID)
		}
	}
	for _, ref := range c.Configs {
		if o := store.Get[*api.Config](r, ref.ConfigID); o == nil || o.Spec.Name != ref.ConfigName {
			return invalid("config not found: %s (%s)", ref.ConfigName, ref.ConfigID)
		}
	}
	return nil
}

// publish gives a service its published ports, so that a conflict is the user's
// error and not a service that never starts. Like the allocator, it keeps the
// ports that the service was given before.
func publish(r store.Reader, s *api.Service) error {
	s.Endpoint.Spec, s.Endpoint.Ports = swarm.EndpointSpec{}, slices.Clone(s.Endpoint.Ports)
	if s.Spec.EndpointSpec == nil {
		s.Endpoint.Ports = nil
		return nil
	}
	s.Endpoint.Spec = *s.Spec.EndpointSpec
	if len(s.Spec.EndpointSpec.Ports) == 0 {
		s.Endpoint.Ports = nil
		return nil
	}
	ports := api.Ports{}
	for other := range store.List[*api.Service](r) {
		if other.ID == s.ID {
			continue
		}
		if err := portConflict(s, other); err != nil {
			return err
		}
		ports.Add(other)
	}
	var err error
	s.Endpoint.Ports, err = ports.Allocate(s)
	return err
}

// portConflict refuses a port that another service has: on every node if either
// is published by the routing mesh.
func portConflict(s, other *api.Service) error {
	for _, p := range s.Spec.EndpointSpec.Ports {
		if p.PublishedPort == 0 {
			continue
		}
		for _, o := range other.Endpoint.Ports {
			host := o.PublishMode == swarm.PortConfigPublishModeHost
			if o.PublishedPort != p.PublishedPort || protocol(o.Protocol) != protocol(p.Protocol) ||
				host && p.PublishMode == swarm.PortConfigPublishModeHost {
				continue
			}
			how := "an ingress port"
			if host {
				how = "a host-published port"
			}
			return invalid("port '%d' is already in use by service '%s' (%s) as %s", p.PublishedPort, other.Spec.Name, other.ID, how)
		}
	}
	return nil
}

func protocol(p network.IPProtocol) network.IPProtocol {
	if p == "" {
		return network.TCP
	}
	return p
}
