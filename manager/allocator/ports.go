package allocator

import (
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// The ports given to services that publish without naming one: Docker's.
const (
	firstPort = 30000
	lastPort  = 32767
)

// Port is a port that a service publishes on every node.
type Port struct {
	Number   uint32
	Protocol network.IPProtocol
}

// Ports are the published ports in use, with the service that has each.
type Ports map[Port]string

// Add counts a service's allocated ports in.
func (p Ports) Add(s *api.Service) {
	for _, c := range s.Endpoint.Ports {
		if c.PublishMode != swarm.PortConfigPublishModeHost && c.PublishedPort != 0 {
			p[Port{c.PublishedPort, c.Protocol}] = s.ID
		}
	}
}

// Allocate returns the ports of a service's spec with published ports for those
// that name none; ones that it had before for the same target stay.
// Conflict: another service has a port; ResourceExhausted: none is left.
func (p Ports) Allocate(s *api.Service) ([]swarm.PortConfig, error) {
	if s.Spec.EndpointSpec == nil {
		return nil, nil
	}
	ports := slices.Clone(s.Spec.EndpointSpec.Ports)
	for i := range ports {
		c := &ports[i]
		if c.Protocol == "" {
			c.Protocol = network.TCP
		}
		if c.PublishMode == "" {
			c.PublishMode = swarm.PortConfigPublishModeIngress
		}
		if c.PublishMode == swarm.PortConfigPublishModeHost {
			continue
		}
		if c.PublishedPort == 0 {
			c.PublishedPort = before(s.Endpoint.Ports, c)
		}
		if c.PublishedPort == 0 {
			if c.PublishedPort = p.free(c.Protocol); c.PublishedPort == 0 {
				return nil, api.Errorf(api.ResourceExhausted, "no port is left to publish %d/%s on: all of %d-%d are in use; name one outside of them", c.TargetPort, c.Protocol, firstPort, lastPort)
			}
		}
		key := Port{c.PublishedPort, c.Protocol}
		if owner, taken := p[key]; taken && owner != s.ID {
			return nil, api.Errorf(api.Conflict, "port '%d' is already in use by service (%s) as an ingress port", c.PublishedPort, owner)
		}
		p[key] = s.ID
	}
	return ports, nil
}

func before(had []swarm.PortConfig, c *swarm.PortConfig) uint32 {
	for _, h := range had {
		if h.TargetPort == c.TargetPort && h.Protocol == c.Protocol && h.PublishMode == c.PublishMode {
			return h.PublishedPort
		}
	}
	return 0
}

func (p Ports) free(protocol network.IPProtocol) uint32 {
	for n := uint32(firstPort); n <= lastPort; n++ {
		if _, taken := p[Port{n, protocol}]; !taken {
			return n
		}
	}
	return 0
}
