package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// GatewayMode is how the containers of a bridge network are reached from outside of it,
// in one address family. Docker's documentation says what each means, "Port publishing
// and mapping".
type GatewayMode string

// Modes of a bridge. The first is the default: published ports are the host's, nothing
// from outside gets to containers' own addresses, and what leaves has the host's.
const (
	GatewayNAT GatewayMode = ""
	// GatewayUnprotected is that, but for containers' own addresses, of which all ports
	// are reached from outside.
	GatewayUnprotected GatewayMode = "nat-unprotected"
	// GatewayRouted translates nothing, either way: published ports are reached at
	// containers' own addresses, and so is ICMP.
	GatewayRouted GatewayMode = "routed"

	// gatewayIsolated is a network's: its bridge has no address. To a bridge, that is
	// one with a bare subnet.
	gatewayIsolated GatewayMode = "isolated"
	// gatewayNAT is how users write the first.
	gatewayNAT = "nat"
)

// parseGatewayMode reads an option's value.
func parseGatewayMode(v string) (GatewayMode, bool) {
	switch m := GatewayMode(v); m {
	case gatewayNAT:
		return GatewayNAT, true
	case GatewayNAT, GatewayUnprotected, GatewayRouted, gatewayIsolated:
		return m, true
	}
	return GatewayNAT, false
}

// parseDevices reads a list of devices, separated by colons.
func parseDevices(v string) ([]string, bool) {
	l := strings.FieldsFunc(v, func(r rune) bool { return r == ':' })
	return l, !slices.ContainsFunc(l, func(name string) bool { return !validDevice(name) })
}

// mode of a network in an address family.
func (s *settings) mode(v6 bool) GatewayMode {
	if v6 {
		return s.mode6
	}
	return s.mode4
}

// bare reports whether the bridge has no address of its own in an address family.
func (s *settings) bare(v6 bool) bool {
	return s.mode(v6) == gatewayIsolated || s.inhibit4 && !v6
}

// checkInternal refuses what only internal networks can be.
func (s *settings) checkInternal(name string, internal bool) error {
	if !internal && (s.mode4 == gatewayIsolated || s.mode6 == gatewayIsolated) {
		return api.Errorf(api.Invalid, "network %s: gateway mode 'isolated' can only be used for an internal network (--internal)", name)
	}
	return nil
}

// ofBridge is the mode of a network's bridge. That of an isolated one has a bare subnet.
func (m GatewayMode) ofBridge() GatewayMode {
	if m == gatewayIsolated {
		return GatewayNAT
	}
	return m
}

// Mode of the bridge in an address family.
func (b *Bridge) Mode(v6 bool) GatewayMode {
	if v6 {
		return b.Mode6
	}
	return b.Mode4
}

// Source is the address that what leaves the bridge's network has; zero: that of the
// device it leaves by.
func (b *Bridge) Source(v6 bool) netip.Addr {
	if v6 {
		return b.Source6
	}
	return b.Source4
}

// Subnets of an address family that the bridge's containers have addresses in.
func (b *Bridge) Subnets(v6 bool) []netip.Prefix {
	var l []netip.Prefix
	for _, a := range slices.Concat(b.Addresses, b.Bare) {
		if a.Addr().Is6() == v6 {
			l = append(l, a.Masked())
		}
	}
	return l
}

func (b *Bridge) validateGateway() error {
	for _, m := range []GatewayMode{b.Mode4, b.Mode6} {
		if m != GatewayNAT && m != GatewayUnprotected && m != GatewayRouted {
			return fmt.Errorf("bridge %s: no gateway mode %q", b.Device, m)
		}
	}
	for _, s := range b.Bare {
		if !s.IsValid() || s != s.Masked() {
			return fmt.Errorf("bridge %s: %s is no subnet", b.Device, s)
		}
	}
	for _, d := range b.Trusted {
		if !validDevice(d) {
			return fmt.Errorf("bridge %s: trusted device %q: not a name for a device", b.Device, d)
		}
	}
	if b.Source4.IsValid() && !b.Source4.Is4() || b.Source6.IsValid() && !b.Source6.Is6() {
		return fmt.Errorf("bridge %s: source %s or %s is not of its family", b.Device, b.Source4, b.Source6)
	}
	return nil
}

// gatewayText is what String says of it.
func (b *Bridge) gatewayText() string {
	var s strings.Builder
	for _, p := range b.Bare {
		s.WriteString(" bare " + p.String())
	}
	s.WriteString(flag(b.Mode4 != GatewayNAT, "ipv4 "+string(b.Mode4)) + flag(b.Mode6 != GatewayNAT, "ipv6 "+string(b.Mode6)))
	for _, d := range b.Trusted {
		s.WriteString(" trusts " + d)
	}
	s.WriteString(flag(b.TrustAll, "trusts all"))
	for _, a := range []netip.Addr{b.Source4, b.Source6} {
		s.WriteString(flag(a.IsValid(), "from "+a.String()))
	}
	return s.String()
}
