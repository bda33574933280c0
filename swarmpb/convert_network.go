package swarmpb

import (
	"net/netip"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func protocols() []network.IPProtocol {
	return []network.IPProtocol{network.TCP, network.UDP, network.SCTP}
}

func newPort(p swarm.PortConfig) *PortConfig {
	m := &PortConfig{
		Name: p.Name, Protocol: numberOf[PortConfig_Protocol](protocols(), p.Protocol),
		TargetPort: p.TargetPort, PublishedPort: p.PublishedPort,
	}
	if p.PublishMode == swarm.PortConfigPublishModeHost {
		m.PublishMode = PortConfig_HOST
	}
	return m
}

func (x *PortConfig) api() swarm.PortConfig {
	p := swarm.PortConfig{
		Name: x.GetName(), Protocol: nameOf(protocols(), x.GetProtocol()),
		TargetPort: x.GetTargetPort(), PublishedPort: x.GetPublishedPort(), PublishMode: swarm.PortConfigPublishModeIngress,
	}
	if x.GetPublishMode() == PortConfig_HOST {
		p.PublishMode = swarm.PortConfigPublishModeHost
	}
	return p
}

// NewNetwork converts a network.
func NewNetwork(n *api.Network) *Network {
	m := &Network{
		Id:   n.ID,
		Meta: newMeta(&n.Meta),
		Spec: &NetworkSpec{
			Annotations:  newAnnotations(&n.Spec.Annotations),
			DriverConfig: some(n.Spec.DriverConfiguration, newDriver),
			Ipv6Enabled:  n.Spec.IPv6Enabled, Internal: n.Spec.Internal,
			Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress,
			Ipam:  some(n.Spec.IPAMOptions, newIPAM),
			Scope: n.Spec.Scope,
		},
		Ipam:       some(n.IPAMOptions, newIPAM),
		Predefined: n.Predefined,
	}
	if n.DriverState.Name != "" || len(n.DriverState.Options) > 0 {
		m.DriverState = newDriver(&n.DriverState)
	}
	if n.Spec.ConfigFrom != nil {
		m.Spec.ConfigFrom = &NetworkSpec_Network{Network: n.Spec.ConfigFrom.Network}
	}
	return m
}

// API converts back.
func (x *Network) API() *api.Network {
	spec := x.GetSpec()
	n := &api.Network{Predefined: x.GetPredefined(), Network: swarm.Network{
		ID:   x.GetId(),
		Meta: x.GetMeta().api(),
		Spec: swarm.NetworkSpec{
			Annotations:         spec.GetAnnotations().api(),
			DriverConfiguration: some(spec.GetDriverConfig(), (*Driver).api),
			IPv6Enabled:         spec.GetIpv6Enabled(), Internal: spec.GetInternal(),
			Attachable: spec.GetAttachable(), Ingress: spec.GetIngress(),
			IPAMOptions: some(spec.GetIpam(), (*IPAMOptions).api),
			Scope:       spec.GetScope(),
		},
		DriverState: *x.GetDriverState().api(),
		IPAMOptions: some(x.GetIpam(), (*IPAMOptions).api),
	}}
	if from, ok := spec.GetConfigFrom().(*NetworkSpec_Network); ok {
		n.Spec.ConfigFrom = &network.ConfigReference{Network: from.Network}
	}
	return n
}

func newIPAM(o *swarm.IPAMOptions) *IPAMOptions {
	return &IPAMOptions{Driver: newDriver(&o.Driver), Configs: each(o.Configs, newIPAMConfig)}
}

func (x *IPAMOptions) api() *swarm.IPAMOptions {
	return &swarm.IPAMOptions{Driver: *x.GetDriver().api(), Configs: each(x.GetConfigs(), (*IPAMConfig).api)}
}

func newIPAMConfig(c swarm.IPAMConfig) *IPAMConfig {
	m := &IPAMConfig{Subnet: prefix(c.Subnet), Range: prefix(c.Range), Family: IPAMConfig_IPV4}
	if c.Gateway.IsValid() {
		m.Gateway = c.Gateway.String()
	}
	if c.Subnet.Addr().Is6() {
		m.Family = IPAMConfig_IPV6
	}
	return m
}

// api leaves out what is not in the form of an address or a subnet.
func (x *IPAMConfig) api() swarm.IPAMConfig {
	c := swarm.IPAMConfig{Subnet: apiPrefix(x.GetSubnet()), Range: apiPrefix(x.GetRange())}
	if a, err := netip.ParseAddr(x.GetGateway()); err == nil {
		c.Gateway = a
	}
	return c
}

func prefix(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func apiPrefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
