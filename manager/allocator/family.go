package allocator

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// family are a network's subnets of one address family, in the user's order. There is
// one at least. A subnet gives out addresses once those before it are full.
type family []*pool

func (f family) is4() bool { return f[0].subnet.Addr().Is4() }

// take gives out the next free address of the first subnet that has one; false if
// none has.
func (f family) take() (netip.Prefix, bool) {
	for _, p := range f {
		if a, ok := p.take(); ok {
			return a, true
		}
	}
	return netip.Prefix{}, false
}

// takeThis gives out an address that is asked for; it need not be among those that
// are given out unasked.
func (f family) takeThis(a netip.Addr, network string) (netip.Prefix, error) {
	if p := f.poolOf(a); p != nil {
		return p.takeThis(a, network)
	}
	var subnets []string
	for _, p := range f {
		subnets = append(subnets, p.subnet.String())
	}
	if len(subnets) == 1 {
		return netip.Prefix{}, api.Errorf(api.Invalid, "network %s: address %s is not in its subnet %s", network, a, subnets[0])
	}
	return netip.Prefix{}, api.Errorf(api.Invalid, "network %s: address %s is in none of its subnets %s", network, a, strings.Join(subnets, ", "))
}

// poolOf returns the subnet that an address is in; nil: none.
func (f family) poolOf(a netip.Addr) *pool {
	if i := slices.IndexFunc(f, func(p *pool) bool { return p.subnet.Contains(a) }); i >= 0 {
		return f[i]
	}
	return nil
}

// poolOf returns the subnet that an address is in; nil: none.
func (w *subnets) poolOf(a netip.Addr) *pool {
	for _, f := range w.families {
		if p := f.poolOf(a); p != nil {
			return p
		}
	}
	return nil
}

// free returns how many addresses can be given out unasked.
func (f family) free() (n uint64) {
	for _, p := range f {
		if m := p.free(); n > math.MaxUint64-m {
			return math.MaxUint64
		} else {
			n += m
		}
	}
	return n
}

// used returns how many addresses are in use.
func (f family) used() (n uint64) {
	for _, p := range f {
		n += p.used
	}
	return n
}

// maxSubnetsNamed bounds how many subnets a refusal names: each task that waits has
// it in its status.
const maxSubnetsNamed = 8

func (f family) exhausted(network string) error {
	if len(f) == 1 {
		return api.Errorf(api.ResourceExhausted,
			"network %s: no address is left in %s: %d are in use; scale something down, or use a network with a larger subnet",
			network, f[0], f[0].used)
	}
	var each []string
	for _, p := range f[:min(len(f), maxSubnetsNamed)] {
		each = append(each, fmt.Sprintf("%d in %s", p.used, p))
	}
	if more := len(f) - len(each); more > 0 {
		each = append(each, fmt.Sprintf("the rest in %d more", more))
	}
	return api.Errorf(api.ResourceExhausted,
		"network %s: no address is left in any of its %d subnets: %d are in use, %s; scale something down, or use a network with larger subnets",
		network, len(f), f.used(), strings.Join(each, ", "))
}
