package network

import (
	"context"
	"net/netip"
)

// EncryptedOverhead is what an encrypted tunnel over IPv4 adds to a packet, in
// bytes; package network/crypt says of what it is made.
const EncryptedOverhead = 90

// IPv6Overhead is how much longer headers of tunnels over IPv6 are, in bytes.
const IPv6Overhead = 20

// SetLocal says by which address of its own this node is reached by others, before
// the managers have said the port (Told). What fits into tunnels depends on it.
func (n *Networks) SetLocal(a netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.local = a.Unmap()
}

// noteMTUs keeps how large packets to the host's addresses may be. Callers hold mu
// or are New.
func (n *Networks) noteMTUs(h *Host) {
	n.mtus = map[netip.Addr]int{}
	for _, d := range h.Devices {
		for _, a := range d.Addresses {
			n.mtus[a.Addr()] = d.MTU
		}
	}
}

// lookAtMTUs looks at the host's addresses again.
func (n *Networks) lookAtMTUs(ctx context.Context) {
	h, err := n.plane.Host(ctx)
	if err != nil {
		return // as known before
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noteMTUs(h)
}

// fits returns the MTU of an overlay that has none of its own: what the device of
// the node's address takes, less what the tunnel adds. It stays for as long as the
// node is in the network. Callers hold mu.
func (n *Networks) fits(encrypted bool) int {
	local := n.local
	if !local.IsValid() {
		local = n.underlay.Local
	}
	mtu := n.mtus[local]
	if mtu == 0 || n.o.MTU != 0 || local.IsLoopback() {
		mtu = n.mtu
	}
	overhead := VXLANOverhead
	if encrypted {
		overhead = EncryptedOverhead
	}
	if local.Is6() {
		overhead += IPv6Overhead
	}
	return max(min(mtu, maxMTU)-overhead, minMTU)
}
