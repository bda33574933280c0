package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// OverlayPrefix begins the names of overlays' namespaces; no sandbox's id does.
const OverlayPrefix = "overlay-"

// VXLANOverhead is what a tunnel over IPv4 adds to a packet, in bytes: Ethernet,
// VXLAN, UDP and IPv4 headers (RFC 7348).
const VXLANOverhead = 50

// Underlay is what tunnels between nodes go over.
type Underlay struct {
	// Local is the node's own address there; zero: no tunnels are made.
	Local netip.Addr
	// Port for UDP, on every node.
	Port uint16
}

// Overlay is a network that spans nodes: a bridge in a namespace of the network's
// own, so that networks' addresses can't meet, and a VXLAN tunnel to the other
// nodes, which is there as long as the network has peers.
type Overlay struct {
	ID  string
	VNI uint32
	MTU int // bytes
	// Encrypted overlays send nothing to other nodes but under Config.Keys.
	Encrypted bool
	// Addresses of the bridge with the length of their subnet: the same on every
	// node, and nobody's next hop.
	Addresses []netip.Prefix
	// Peers are the endpoints on other nodes, sorted by Peer.Compare. Nothing else
	// is reached, and nothing is learned.
	Peers []Peer
	// Unknown says that Peers is not known yet, as after a start without a manager:
	// the tunnel stays as it is, and so do virtual addresses of the network that
	// Config.Balancers has not.
	Unknown bool
}

// Peer is an endpoint on another node.
type Peer struct {
	Address, Address6 netip.Addr // one may be zero
	Node              netip.Addr // of the node, in the underlay
}

// Compare orders peers by their addresses.
func (p Peer) Compare(o Peer) int {
	if c := p.Address.Compare(o.Address); c != 0 {
		return c
	}
	if c := p.Address6.Compare(o.Address6); c != 0 {
		return c
	}
	return p.Node.Compare(o.Node)
}

// MAC is the address that every node gives an endpoint with these addresses.
func (p Peer) MAC() net.HardwareAddr { return net.HardwareAddr(macOf(p.Address, p.Address6)) }

// Equal reports whether the two mean the same.
func (o *Overlay) Equal(p *Overlay) bool {
	return o == p || o.SameBridge(p) && o.VNI == p.VNI && o.Encrypted == p.Encrypted && o.Unknown == p.Unknown && slices.Equal(o.Peers, p.Peers)
}

// SameBridge reports whether the two mean the same on the node itself.
func (o *Overlay) SameBridge(p *Overlay) bool {
	return o.ID == p.ID && o.MTU == p.MTU && slices.Equal(o.Addresses, p.Addresses)
}

func (c *Config) validateOverlays() error {
	vnis := map[uint32]string{}
	for id, o := range c.Overlays {
		switch {
		case id == "" || id != o.ID || !validContainerID(id):
			return fmt.Errorf("overlay %q is listed as %q", o.ID, id)
		case o.VNI == 0 || o.VNI >= 1<<24:
			return fmt.Errorf("overlay %s: %d is no VXLAN id", id, o.VNI)
		case o.MTU < minMTU || o.MTU > maxMTU:
			return fmt.Errorf("overlay %s: mtu %d is not %d to %d", id, o.MTU, minMTU, maxMTU)
		case vnis[o.VNI] != "" && len(o.Peers) > 0:
			return fmt.Errorf("overlay %s: VXLAN id %d is also that of %s", id, o.VNI, vnis[o.VNI])
		case !slices.IsSortedFunc(o.Peers, Peer.Compare):
			return fmt.Errorf("overlay %s: peers are not sorted", id)
		}
		if len(o.Peers) > 0 {
			vnis[o.VNI] = id
		}
		for _, p := range o.Peers {
			if !p.Address.IsValid() && !p.Address6.IsValid() || !p.Node.IsValid() {
				return fmt.Errorf("overlay %s: peer %s, %s at %s is not complete", id, p.Address, p.Address6, p.Node)
			}
		}
	}
	return nil
}
