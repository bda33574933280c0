package api

import (
	"iter"
	"net/netip"
	"strconv"
	"strings"
)

// Options of overlay networks, as Docker names them.
const (
	// OptionVNIs are the network's VXLAN ids, one for each IPv4 subnet, with commas
	// between them.
	OptionVNIs = "com.docker.network.driver.overlay.vxlanid_list"
	// OptionMTU is in bytes.
	OptionMTU = "com.docker.network.driver.mtu"
	// OptionEncrypted asks for encryption between nodes.
	OptionEncrypted = "encrypted"
)

// LastVNI is the highest VXLAN id.
const LastVNI = 1<<24 - 1

// VNI returns the VXLAN id that a network's tunnels have; 0 if it was given none.
func (n *Network) VNI() uint32 {
	for v := range n.VNIs() {
		return v
	}
	return 0
}

// VNIs returns the VXLAN ids that a network was given. The first is in use; Docker
// Engines, which have a tunnel for each IPv4 subnet, need as many as there are.
func (n *Network) VNIs() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for s := range strings.SplitSeq(n.DriverState.Options[OptionVNIs], ",") {
			if v, err := strconv.ParseUint(s, 10, 24); err == nil && v != 0 && !yield(uint32(v)) {
				return
			}
		}
	}
}

// Encrypted reports whether what nodes send each other is to be encrypted; if what
// was asked for is not understood, it is.
func (n *Network) Encrypted() bool {
	v, ok := n.DriverState.Options[OptionEncrypted]
	if d := n.Spec.DriverConfiguration; !ok && d != nil {
		v, ok = d.Options[OptionEncrypted]
	}
	on, err := strconv.ParseBool(v)
	return ok && (err != nil || on)
}

// OwnOfSubnet reports whether an address is a subnet's own, and no host's: its first,
// or in IPv4 its last, that of broadcasts. Subnets of one or two addresses have none.
func OwnOfSubnet(p netip.Prefix, a netip.Addr) bool {
	if !p.Contains(a) || p.Addr().BitLen()-p.Bits() < 2 {
		return false
	}
	return a == p.Masked().Addr() || a.Is4() && !p.Contains(a.Next())
}

// Subnets returns the subnets that a network was given.
func (n *Network) Subnets() []netip.Prefix {
	if n.IPAMOptions == nil {
		return nil
	}
	var all []netip.Prefix
	for _, c := range n.IPAMOptions.Configs {
		if c.Subnet.IsValid() {
			all = append(all, c.Subnet)
		}
	}
	return all
}

// Clashes reports whether two networks can't both be in a swarm, because of what
// they were given.
func (n *Network) Clashes(o *Network) bool {
	for v := range n.VNIs() {
		for other := range o.VNIs() {
			if v == other {
				return true
			}
		}
	}
	for _, a := range n.Subnets() {
		for _, b := range o.Subnets() {
			if a.Overlaps(b) {
				return true
			}
		}
	}
	return n.Spec.Ingress && o.Spec.Ingress
}

// IngressAddresses returns the node's own addresses in the network of the routing
// mesh, whose id is given; nil if it has none there (yet).
func (n *Node) IngressAddresses(network string) []netip.Prefix {
	if network == "" || n.IngressNetwork != network {
		return nil
	}
	return n.Ingress
}
