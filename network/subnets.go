package network

import (
	"net/netip"
	"slices"

	"github.com/legion-swarm/legion/api"
)

// AddressPool is a block that subnets of networks are cut from
// (--default-address-pool).
type AddressPool struct {
	Base netip.Prefix
	Size int // prefix length of each subnet
}

// DefaultPools returns the blocks that Docker cuts node-local subnets from.
func DefaultPools() []AddressPool {
	p := netip.MustParsePrefix
	return []AddressPool{
		{p("172.17.0.0/16"), 16}, {p("172.18.0.0/16"), 16}, {p("172.19.0.0/16"), 16},
		{p("172.20.0.0/14"), 16}, {p("172.24.0.0/14"), 16}, {p("172.28.0.0/14"), 16},
		{p("192.168.0.0/16"), 20},
	}
}

func validatePools(pools []AddressPool) error {
	for _, p := range pools {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return api.Errorf(api.Invalid, "default address pool %s with size %d: the size must be between the base's length and %d",
				p.Base, p.Size, p.Base.Addr().BitLen())
		}
	}
	return nil
}

// maxSubnetsTried bounds the search in a pool as large as 10.0.0.0/8 by /30.
const maxSubnetsTried = 1 << 16

// freeSubnet returns the first subnet of the pools, of the family wanted, that
// overlaps nothing in busy.
func freeSubnet(pools []AddressPool, ipv6 bool, busy []netip.Prefix) (netip.Prefix, error) {
	tried := 0
	for _, pl := range pools {
		if pl.Base.Addr().Is6() != ipv6 {
			continue
		}
		for s := netip.PrefixFrom(pl.Base.Masked().Addr(), pl.Size); s.IsValid() && pl.Base.Contains(s.Addr()); {
			if tried++; tried > maxSubnetsTried {
				break
			}
			i := slices.IndexFunc(busy, s.Overlaps)
			if i < 0 {
				return s, nil
			}
			// Go on behind the larger of the two.
			end := lastAddr(s)
			if e := lastAddr(busy[i]); e.Compare(end) > 0 {
				end = e
			}
			s = netip.Prefix{}
			if n := end.Next(); n.IsValid() {
				s = netip.PrefixFrom(n, pl.Size).Masked()
			}
		}
	}
	family := "IPv4"
	if ipv6 {
		family = "IPv6"
	}
	return netip.Prefix{}, api.Errorf(api.ResourceExhausted,
		"all predefined address pools have been fully subnetted: no free %s subnet beside the %d in use by networks and routes of this host; give one with --subnet or more with --default-address-pool",
		family, len(busy))
}

// ulaPool is the block that IPv6 subnets come from unless one is configured:
// a /48 of the node's own (RFC 4193), made from its id.
func ulaPool(seed [5]byte) AddressPool {
	b := [16]byte{0: 0xfd}
	copy(b[1:6], seed[:])
	return AddressPool{Base: netip.PrefixFrom(netip.AddrFrom16(b), 48), Size: 64}
}
