package network

import (
	"fmt"
	"net/netip"
	"slices"
)

// Mesh is this node's part in the routing mesh: it takes connections to published
// ports of services and hands them to tasks on any node, which see the client's
// own address.
type Mesh struct {
	// Overlay is the id of the ingress network. It is among Overlays even if no
	// task of it is here.
	Overlay string
	// Addresses of this node in it, one a family, with the length of their subnet.
	// The other nodes' are among the overlay's peers.
	Addresses []netip.Prefix
	// Routes are the network's other subnets, of the addresses' families.
	Routes []netip.Prefix
}

// MeshKey is where a service's port is published, on every node.
type MeshKey struct {
	Protocol Protocol
	Port     uint16
}

func (k MeshKey) String() string { return fmt.Sprintf("%s %d", k.Protocol, k.Port) }

func (k MeshKey) compare(o MeshKey) int {
	return PortKey{k.Protocol, netip.AddrPortFrom(netip.Addr{}, k.Port)}.compare(PortKey{o.Protocol, netip.AddrPortFrom(netip.Addr{}, o.Port)})
}

// MeshPort is a port of the routing mesh.
type MeshPort struct {
	MeshKey
	// Target is the port at the backends.
	Target uint16
	// On restricts the port to addresses of the node within these prefixes, and to
	// these devices; both empty: all of the node's own addresses.
	On      []netip.Prefix
	Devices []string
	// Backends are tasks' addresses in the ingress network that take new
	// connections now, sorted.
	Backends []netip.Addr
	Balance  Balance
}

// Equal reports whether the two mean the same. Either may be nil.
func (m *Mesh) Equal(o *Mesh) bool {
	if m == nil || o == nil {
		return m == o
	}
	return m.Overlay == o.Overlay && slices.Equal(m.Addresses, o.Addresses) && slices.Equal(m.Routes, o.Routes)
}

// Equal reports whether the two mean the same.
func (p *MeshPort) Equal(o *MeshPort) bool {
	return p == o || p.MeshKey == o.MeshKey && p.Target == o.Target && p.Balance == o.Balance && slices.Equal(p.On, o.On) &&
		slices.Equal(p.Devices, o.Devices) && slices.Equal(p.Backends, o.Backends)
}

func (m *Mesh) String() string {
	s := "mesh " + m.Overlay
	for _, a := range m.Addresses {
		s += " " + a.String()
	}
	for _, r := range m.Routes {
		s += " reaches " + r.String()
	}
	return s + "\n"
}

// Subnets are those of the node's addresses, then the others.
func (m *Mesh) Subnets() []netip.Prefix { return onLink(m.Addresses, m.Routes) }

func (p *MeshPort) String() string {
	s := "mesh-port " + p.MeshKey.String()
	for _, a := range p.On {
		s += " on " + a.String()
	}
	for _, d := range p.Devices {
		s += " on " + d
	}
	s += flag(p.Balance != "", string(p.Balance)) + fmt.Sprintf(" -> %d at", p.Target)
	for _, a := range p.Backends {
		s += " " + a.String()
	}
	return s + "\n"
}

func (c *Config) validateMesh() error {
	if c.Mesh != nil && c.Overlays[c.Mesh.Overlay] == nil {
		return fmt.Errorf("mesh: there is no overlay %q", c.Mesh.Overlay)
	}
	if c.Mesh != nil {
		if err := validateRoutes(c.Mesh.Routes, c.Mesh.Addresses); err != nil {
			return fmt.Errorf("mesh: %w", err)
		}
	}
	for k, p := range c.MeshPorts {
		if k != p.MeshKey || k.Port == 0 || p.Target == 0 {
			return fmt.Errorf("mesh port %s to %d is not complete", k, p.Target)
		}
		if c.Mesh == nil {
			return fmt.Errorf("mesh port %s without a mesh", k)
		}
		if !slices.IsSortedFunc(p.Backends, netip.Addr.Compare) {
			return fmt.Errorf("mesh port %s: backends are not sorted", k)
		}
	}
	return nil
}
