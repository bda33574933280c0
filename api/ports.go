package api

import (
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// The ports given to services that publish without naming one: Docker's.
const (
	firstPort = 30000
	lastPort  = 32767
)

// Port is a port that a service publishes on every node (publish mode ingress).
type Port struct {
	Number   uint32
	Protocol network.IPProtocol
}

// Ports are the published ports in use, with the id of the service that has
// each. They can be computed from the services at any time.
type Ports map[Port]string

// Add counts a service's allocated ports in.
func (p Ports) Add(s *Service) {
	for i := range s.Endpoint.Ports {
		if c := &s.Endpoint.Ports[i]; c.PublishMode != swarm.PortConfigPublishModeHost && c.PublishedPort != 0 {
			p[Port{c.PublishedPort, c.Protocol}] = s.ID
		}
	}
}

// Allocate returns the ports of a service's spec, with defaults filled in and a
// published port for those that name none; one that it had for the same target
// stays. What it returns is counted in. Conflict: another service has a port;
// ResourceExhausted: none is left.
func (p Ports) Allocate(s *Service) ([]swarm.PortConfig, error) {
	if s.Spec.EndpointSpec == nil || len(s.Spec.EndpointSpec.Ports) == 0 {
		return nil, nil
	}
	ports := slices.Clone(s.Spec.EndpointSpec.Ports)
	for i := range ports {
		if err := p.allocate(s, &ports[i]); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

func (p Ports) allocate(s *Service, c *swarm.PortConfig) error {
	if c.Protocol == "" {
		c.Protocol = network.TCP
	}
	if c.PublishMode == "" {
		c.PublishMode = swarm.PortConfigPublishModeIngress
	}
	if c.PublishMode == swarm.PortConfigPublishModeHost {
		return nil
	}
	if c.PublishedPort == 0 {
		c.PublishedPort = p.before(s, c)
	}
	if c.PublishedPort == 0 {
		c.PublishedPort = p.free(s, c.Protocol)
	}
	if c.PublishedPort == 0 {
		return Errorf(ResourceExhausted, "no port is left to publish %d/%s on: all of %d-%d are in use; name one outside of them", c.TargetPort, c.Protocol, firstPort, lastPort)
	}
	key := Port{c.PublishedPort, c.Protocol}
	if owner, taken := p[key]; taken && owner != s.ID {
		return Errorf(Conflict, "port '%d' is already in use by service (%s) as an ingress port", c.PublishedPort, owner)
	}
	p[key] = s.ID
	return nil
}

// before returns the port that the service was given for the same target, if
// nobody has it now.
func (p Ports) before(s *Service, c *swarm.PortConfig) uint32 {
	for _, h := range s.Endpoint.Ports {
		if h.TargetPort != c.TargetPort || h.Protocol != c.Protocol || h.PublishMode != c.PublishMode {
			continue
		}
		if owner, taken := p[Port{h.PublishedPort, h.Protocol}]; !taken || owner == s.ID {
			return h.PublishedPort
		}
	}
	return 0
}

// free returns a port that neither another service has nor s names itself; 0
// when there is none.
func (p Ports) free(s *Service, protocol network.IPProtocol) uint32 {
	named := func(n uint32) bool {
		return slices.ContainsFunc(s.Spec.EndpointSpec.Ports, func(c swarm.PortConfig) bool { return c.PublishedPort == n })
	}
	for n := uint32(firstPort); n <= lastPort; n++ {
		if _, taken := p[Port{n, protocol}]; !taken && !named(n) {
			return n
		}
	}
	return 0
}
