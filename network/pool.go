package network

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"

	"github.com/legion-swarm/legion/api"
)

// pool gives out the addresses of one subnet. What is taken can be recomputed
// from what is attached: nothing else is kept, but the cursor, which only
// decides which free address comes next, so that one that was just freed is
// not given out again at once. Not safe for concurrent use.
type pool struct {
	network string // for errors
	subnet  netip.Prefix
	// first and last bound what is given out unasked: the range, less the
	// network's own and the broadcast address.
	first, last netip.Addr
	taken       map[netip.Addr]struct{}
	next        netip.Addr
}

// newPool returns a pool of subnet; within limits what take gives out when it
// may choose, and is the subnet if zero.
func newPool(network string, subnet, within netip.Prefix) *pool {
	if !within.IsValid() {
		within = subnet
	}
	p := &pool{network: network, subnet: subnet, taken: map[netip.Addr]struct{}{}}
	p.first, p.last = within.Addr(), lastAddr(within)
	if p.first == subnet.Addr() && hasNetworkAddress(subnet) {
		p.first = p.first.Next()
	}
	if p.last == lastAddr(subnet) && subnet.Addr().Is4() && hasNetworkAddress(subnet) {
		p.last = p.last.Prev()
	}
	p.next = p.first
	return p
}

// hasNetworkAddress is false for point-to-point subnets (RFC 3021, RFC 6164).
func hasNetworkAddress(p netip.Prefix) bool { return p.Addr().BitLen()-p.Bits() > 1 }

// take returns a free address: the next after the one last given out.
func (p *pool) take() (netip.Addr, error) {
	a := p.next
	for range len(p.taken) + 1 {
		if _, ok := p.taken[a]; !ok {
			p.taken[a] = struct{}{}
			p.next = p.after(a)
			return a, nil
		}
		a = p.after(a)
	}
	return netip.Addr{}, p.exhausted()
}

// after returns the address that follows a, going round.
func (p *pool) after(a netip.Addr) netip.Addr {
	if a = a.Next(); !a.IsValid() || a.Compare(p.first) < 0 || a.Compare(p.last) > 0 {
		return p.first
	}
	return a
}

func (p *pool) exhausted() error {
	return api.Errorf(api.ResourceExhausted,
		"network %s: no free address in %s (%s to %s): %d in use; remove containers from the network or create one with a larger subnet",
		p.network, p.subnet, p.first, p.last, len(p.taken))
}

// claim takes a given address of the subnet.
func (p *pool) claim(a netip.Addr) error {
	if !p.subnet.Contains(a) {
		return api.Errorf(api.Invalid, "network %s: address %s is not in its subnet %s", p.network, a, p.subnet)
	}
	if api.OwnOfSubnet(p.subnet, a) {
		return api.Errorf(api.Invalid, "network %s: address %s is its subnet's own, not a host's", p.network, a)
	}
	if _, ok := p.taken[a]; ok {
		return api.Errorf(api.PermissionDenied, "network %s: Address already in use: %s is another container's or reserved", p.network, a)
	}
	p.taken[a] = struct{}{}
	return nil
}

// resume puts the cursor behind the highest address taken, so that after a
// restart, too, what was freed lately is not what is given out first.
func (p *pool) resume() {
	top := p.first
	for a := range p.taken {
		if a.Compare(top) > 0 && a.Compare(p.last) <= 0 {
			top = a
		}
	}
	p.next = p.after(top)
}

func (p *pool) release(a netip.Addr) { delete(p.taken, a) }

// free returns how many addresses take could still give out.
func (p *pool) free() uint64 {
	size := distance(p.first, p.last)
	if size == math.MaxUint64 {
		return size
	}
	size++
	var used uint64
	for a := range p.taken {
		if a.Compare(p.first) >= 0 && a.Compare(p.last) <= 0 {
			used++
		}
	}
	return size - min(used, size)
}

// distance returns b - a, saturating.
func distance(a, b netip.Addr) uint64 {
	x, y := a.As16(), b.As16()
	lo, borrow := bits.Sub64(binary.BigEndian.Uint64(y[8:]), binary.BigEndian.Uint64(x[8:]), 0)
	hi, _ := bits.Sub64(binary.BigEndian.Uint64(y[:8]), binary.BigEndian.Uint64(x[:8]), borrow)
	if hi != 0 {
		return math.MaxUint64
	}
	return lo
}

func lastAddr(p netip.Prefix) netip.Addr {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
