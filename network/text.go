package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// String renders the config, one thing a line, in a stable order, for logs and
// for comparison in tests.
func (c *Config) String() string {
	var b strings.Builder
	b.WriteString("rules" + flag(c.Rules4, "ipv4") + flag(c.Rules6, "ipv6") + flag(c.Forward, "forward") + flag(c.UserProxy, "proxy") + "\n")
	if c.Underlay.Local.IsValid() {
		fmt.Fprintf(&b, "underlay %s port %d\n", c.Underlay.Local, c.Underlay.Port)
	}
	for _, id := range slices.Sorted(maps.Keys(c.Overlays)) {
		b.WriteString(c.Overlays[id].String())
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bridges)) {
		b.WriteString(c.Bridges[name].String())
	}
	for _, id := range slices.Sorted(maps.Keys(c.Sandboxes)) {
		b.WriteString(c.Sandboxes[id].String())
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.Ports), PortKey.compare) {
		p := c.Ports[k]
		if p.Open {
			fmt.Fprintf(&b, "port %s open in %s\n", k, p.Sandbox)
			continue
		}
		fmt.Fprintf(&b, "port %s -> %s in %s\n", k, p.Target, p.Sandbox)
	}
	c.writeServices(&b)
	return b.String()
}

func (c *Config) writeServices(b *strings.Builder) {
	for _, id := range slices.Sorted(maps.Keys(c.Zones)) {
		b.WriteString(c.Zones[id].String())
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.Balancers), BalancerKey.compare) {
		b.WriteString(c.Balancers[k].String())
	}
	if c.Mesh != nil {
		b.WriteString(c.Mesh.String())
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.MeshPorts), MeshKey.compare) {
		b.WriteString(c.MeshPorts[k].String())
	}
	for _, k := range c.Keys.All {
		b.WriteString(k.String() + flag(k.ID == c.Keys.Send, "sends") + "\n")
	}
}

func (b *Bridge) String() string {
	var s strings.Builder
	s.WriteString("bridge " + b.Device)
	for _, a := range b.Addresses {
		s.WriteString(" " + a.String())
	}
	if b.MTU != 0 {
		fmt.Fprintf(&s, " mtu %d", b.MTU)
	}
	s.WriteString(flag(b.Masquerade, "masquerade") + flag(b.Internal, "internal") + flag(b.Isolated, "isolated") + flag(b.External, "external") + b.gatewayText() + "\n")
	return s.String()
}

func (o *Overlay) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "overlay %s vni %d mtu %d", o.ID, o.VNI, o.MTU)
	for _, a := range o.Addresses {
		b.WriteString(" " + a.String())
	}
	b.WriteString(flag(o.Encrypted, "encrypted") + flag(o.Unknown, "unknown-peers") + "\n")
	for _, p := range o.Peers {
		b.WriteString("  peer")
		for _, a := range []netip.Addr{p.Address, p.Address6} {
			if a.IsValid() {
				b.WriteString(" " + a.String())
			}
		}
		b.WriteString(" at " + p.Node.String() + "\n")
	}
	return b.String()
}

func (s *Sandbox) String() string {
	var b strings.Builder
	b.WriteString("sandbox " + s.ID)
	if s.Gateway4.IsValid() {
		b.WriteString(" via " + s.Gateway4.String())
	}
	if s.Gateway6.IsValid() {
		b.WriteString(" via " + s.Gateway6.String())
	}
	if s.Resolver != nil {
		b.WriteString(" " + s.Resolver.String())
	}
	b.WriteString("\n")
	for i := range s.Interfaces {
		f := &s.Interfaces[i]
		fmt.Fprintf(&b, "  %s %s", f.Name, f.MAC)
		for _, a := range f.Addresses {
			b.WriteString(" " + a.String())
		}
		for _, r := range f.Routes {
			b.WriteString(" reaches " + r.String())
		}
		on := f.Bridge
		if f.Overlay != "" {
			on = "overlay " + f.Overlay
		}
		if f.Parent != "" {
			on = "device " + f.Parent + flag(f.Mode != "", f.Mode)
		}
		fmt.Fprintf(&b, " on %s as %s", on, f.HostName)
		if f.MTU != 0 {
			fmt.Fprintf(&b, " mtu %d", f.MTU)
		}
		for _, y := range f.Sysctls {
			b.WriteString(" " + y)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func flag(on bool, name string) string {
	if on {
		return " " + name
	}
	return ""
}
