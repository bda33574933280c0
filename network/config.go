package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Config says all that a node's data plane should be. It is a value: once
// given to a Dataplane it is never changed, and neither is what it points to,
// so that configs can share what they have in common.
type Config struct {
	// Rules4 and Rules6 allow packet filter rules of the address family. Without
	// them nothing is translated, masqueraded or filtered.
	Rules4, Rules6 bool
	// Forward allows the data plane to turn on forwarding in the kernel when a
	// bridge needs it.
	Forward bool
	// UserProxy has connections to published ports that no rule translates
	// (to [::1], or to an IPv4-only container from IPv6) relayed by the daemon.
	UserProxy bool
	// Underlay is what tunnels between nodes go over.
	Underlay Underlay
	// Overlays by id.
	Overlays map[string]*Overlay
	// Bridges by device name.
	Bridges map[string]*Bridge
	// Sandboxes by id.
	Sandboxes map[string]*Sandbox
	// Ports published on the host.
	Ports map[PortKey]*Port
	// Zones by network id: the names that Sandbox.Resolver answers.
	Zones map[string]*Zone
	// Balancers of virtual addresses.
	Balancers map[BalancerKey]*Balancer
	// Mesh is nil on a node that answers for no ports of the routing mesh.
	Mesh *Mesh
	// MeshPorts of services.
	MeshPorts map[MeshKey]*MeshPort
	// Keys of encrypted overlays. Without any, these let nothing pass.
	Keys Keys
}

// Bridge is a node-local bridge.
type Bridge struct {
	Device string
	// Addresses of the bridge itself with the length of their subnet; the
	// containers' gateways.
	Addresses []netip.Prefix
	MTU       int // bytes, 0: the kernel's default
	// Bare subnets are the network's, but the bridge is given no address there. One that
	// users give it is left alone.
	Bare []netip.Prefix
	// Masquerade what leaves the subnet through another device.
	Masquerade bool
	// Source4 and Source6 are the addresses that it is given then; zero: those of the
	// device.
	Source4, Source6 netip.Addr
	// Mode4 and Mode6 say how containers are reached from outside.
	Mode4, Mode6 GatewayMode
	// Trusted devices of the host: what comes in by them reaches published ports at
	// containers' own addresses, too. It says nothing where a mode lets in more.
	Trusted []string
	// TrustAll is that for all devices.
	TrustAll bool
	// Internal networks reach nothing but themselves and the host.
	Internal bool
	// Isolated keeps ports of the bridge from talking to each other.
	Isolated bool
	// External bridges are made by somebody else: they are used, and never made,
	// changed or removed.
	External bool
}

// Sandbox is a network namespace with its interfaces.
type Sandbox struct {
	ID string
	// Interfaces in the order in which they are made.
	Interfaces []Interface
	// Gateway4 and Gateway6 are the default routes' next hops; zero: none.
	Gateway4, Gateway6 netip.Addr
	// Resolver answers at 127.0.0.11; nil: nobody does.
	Resolver *Resolver
}

// Interface is an interface of a sandbox on a bridge.
type Interface struct {
	Name string // in the sandbox
	// HostName is the name of the other end, on the host. Unique for ever: an
	// interface with the same HostName is the same interface.
	HostName string
	Bridge   string // device; empty: not on one of ours
	Overlay  string // id; empty: not in one
	// Parent is a device of the host that the interface is on by itself (macvlan);
	// empty: on a bridge, or in an overlay. Mode is one of MacvlanBridge and so on;
	// empty: that.
	Parent, Mode string
	MAC          string // as net.HardwareAddr prints it
	Addresses    []netip.Prefix
	// Routes are the subnets, besides those of Addresses and of the same families, that
	// are on the interface's link.
	Routes []netip.Prefix
	MTU    int // bytes, 0: the kernel's default
	// Sysctls as "net.ipv4.conf.IFNAME.log_martians=1", where IFNAME stands for
	// Name. Written before the interface is up.
	Sysctls []string
}

// Protocol of a published port: "tcp", "udp" or "sctp".
type Protocol string

// The protocols that a port can be published for.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// PortKey is where a port is published. Host's address may be unspecified:
// all addresses of its family.
type PortKey struct {
	Protocol Protocol
	Host     netip.AddrPort
}

func (k PortKey) String() string { return string(k.Protocol) + " " + k.Host.String() }

func (k PortKey) compare(o PortKey) int {
	if k.Protocol != o.Protocol {
		if k.Protocol < o.Protocol {
			return -1
		}
		return 1
	}
	if c := int(k.Host.Port()) - int(o.Host.Port()); c != 0 {
		return c
	}
	return k.Host.Addr().Compare(o.Host.Addr())
}

// overlaps reports whether the two can't both be published on one host.
func (k PortKey) overlaps(o PortKey) bool {
	a, b := k.Host.Addr(), o.Host.Addr()
	return k.Protocol == o.Protocol && k.Host.Port() == o.Host.Port() && a.Is4() == b.Is4() &&
		(a == b || a.IsUnspecified() || b.IsUnspecified())
}

// Port is a published port.
type Port struct {
	PortKey
	// Target is where connections go. If its family isn't the host address's,
	// only UserProxy can serve it.
	Target netip.AddrPort
	// Sandbox that has the target's address.
	Sandbox string
	// Open ports are reached at the target itself, by routing, which is also their
	// Host: nothing is translated, and no port of the host is taken.
	Open bool `json:",omitempty"`
}

// Equal reports whether the two mean the same.
func (b *Bridge) Equal(o *Bridge) bool {
	return b == o || b.Device == o.Device && slices.Equal(b.Addresses, o.Addresses) && b.MTU == o.MTU &&
		b.Masquerade == o.Masquerade && b.Internal == o.Internal && b.Isolated == o.Isolated && b.External == o.External &&
		slices.Equal(b.Bare, o.Bare) && b.Source4 == o.Source4 && b.Source6 == o.Source6 && b.Mode4 == o.Mode4 && b.Mode6 == o.Mode6 && slices.Equal(b.Trusted, o.Trusted) && b.TrustAll == o.TrustAll
}

// Equal reports whether the two mean the same.
func (i *Interface) Equal(o *Interface) bool {
	return i.SameDevice(o) && slices.Equal(i.Routes, o.Routes)
}

// SameDevice reports whether the two differ in routes at most.
func (i *Interface) SameDevice(o *Interface) bool {
	return i.Name == o.Name && i.HostName == o.HostName && i.Bridge == o.Bridge && i.Overlay == o.Overlay && i.Parent == o.Parent && i.Mode == o.Mode && i.MAC == o.MAC &&
		slices.Equal(i.Addresses, o.Addresses) && i.MTU == o.MTU && slices.Equal(i.Sysctls, o.Sysctls)
}

// Subnets are those on the interface's link: its addresses', then the others.
func (i *Interface) Subnets() []netip.Prefix { return onLink(i.Addresses, i.Routes) }

func onLink(addrs, routes []netip.Prefix) []netip.Prefix {
	l := make([]netip.Prefix, 0, len(addrs)+len(routes))
	for _, a := range addrs {
		l = append(l, a.Masked())
	}
	return append(l, routes...)
}

// Equal reports whether the two mean the same.
func (s *Sandbox) Equal(o *Sandbox) bool {
	return s == o || s.ID == o.ID && s.Gateway4 == o.Gateway4 && s.Gateway6 == o.Gateway6 && s.Resolver.Equal(o.Resolver) &&
		slices.EqualFunc(s.Interfaces, o.Interfaces, func(a, b Interface) bool { return a.Equal(&b) })
}

// Interface returns the interface with that HostName, or nil.
func (s *Sandbox) Interface(hostName string) *Interface {
	for i := range s.Interfaces {
		if s.Interfaces[i].HostName == hostName {
			return &s.Interfaces[i]
		}
	}
	return nil
}

// maxDeviceName is IFNAMSIZ less the terminating zero.
const maxDeviceName = 15

// Validate reports the first thing that no data plane could do.
func (c *Config) Validate() error {
	hosts := map[string]string{}
	for name, b := range c.Bridges {
		if err := b.validate(name); err != nil {
			return err
		}
		hosts[name] = "bridge " + name
	}
	for _, check := range []func() error{c.validateOverlays, c.validateZones, c.validateBalancers, c.validateMesh, c.validateKeys} {
		if err := check(); err != nil {
			return err
		}
	}
	for id, s := range c.Sandboxes {
		if id == "" || id != s.ID || strings.HasPrefix(id, OverlayPrefix) {
			return fmt.Errorf("sandbox %q is listed as %q", s.ID, id)
		}
		for i := range s.Interfaces {
			f := &s.Interfaces[i]
			if other, ok := hosts[f.HostName]; ok {
				return fmt.Errorf("sandbox %s: host device %s is already that of %s", id, f.HostName, other)
			}
			hosts[f.HostName] = "sandbox " + id
			if err := c.validateInterface(f); err != nil {
				return fmt.Errorf("sandbox %s: interface %s: %w", id, f.Name, err)
			}
		}
	}
	for k, p := range c.Ports {
		if k != p.PortKey || k.Host.Port() == 0 || !p.Target.IsValid() || p.Target.Port() == 0 {
			return fmt.Errorf("port %s to %s is not complete", k, p.Target)
		}
		if p.Open && p.Host != p.Target {
			return fmt.Errorf("port %s is open, and leads to %s", k, p.Target)
		}
	}
	return nil
}

func (b *Bridge) validate(name string) error {
	if name != b.Device || !validDevice(name) {
		return fmt.Errorf("bridge %q: not a name for a device (1 to %d characters, no space, slash or colon)", b.Device, maxDeviceName)
	}
	for _, a := range b.Addresses {
		if !a.IsValid() {
			return fmt.Errorf("bridge %s: invalid address", name)
		}
	}
	return b.validateGateway()
}

func (c *Config) validateInterface(f *Interface) error {
	switch {
	case !validDevice(f.Name) || !validDevice(f.HostName):
		return fmt.Errorf("%q and %q: not names for devices (1 to %d characters, no space, slash or colon)", f.Name, f.HostName, maxDeviceName)
	case f.Parent != "":
		if err := f.validateParent(); err != nil {
			return err
		}
	case f.Overlay != "" && (f.Bridge != "" || c.Overlays[f.Overlay] == nil):
		return fmt.Errorf("there is no overlay %q, or it is also on bridge %q", f.Overlay, f.Bridge)
	case f.Overlay == "" && c.Bridges[f.Bridge] == nil:
		return fmt.Errorf("there is no bridge %q", f.Bridge)
	}
	if _, err := net.ParseMAC(f.MAC); err != nil {
		return err
	}
	return validateRoutes(f.Routes, f.Addresses)
}

func validateRoutes(l, addrs []netip.Prefix) error {
	for _, r := range l {
		if !r.IsValid() || r != r.Masked() {
			return fmt.Errorf("route to %s, which is no subnet", r)
		}
		if !slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr().Is4() == r.Addr().Is4() }) {
			return fmt.Errorf("route to %s, but no address of its family", r)
		}
	}
	return nil
}

func validDevice(name string) bool {
	if name == "" || len(name) > maxDeviceName || name == "." || name == ".." {
		return false
	}
	for _, r := range name {
		if r <= ' ' || r > '~' || r == '/' || r == ':' {
			return false
		}
	}
	return true
}
