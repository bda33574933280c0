package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// pools are a network's subnets of one address family, in the user's order; none, if
// it has not the family. A subnet gives out addresses once those before it are full.
type pools []*pool

// of returns the subnet that an address is in; nil: none.
func (l pools) of(a netip.Addr) *pool {
	if i := slices.IndexFunc(l, func(p *pool) bool { return p.subnet.Contains(a) }); i >= 0 {
		return l[i]
	}
	return nil
}

// take returns a free address of the first subnet that has one. There must be a
// subnet.
func (l pools) take() (a netip.Addr, err error) {
	for _, p := range l {
		if a, err = p.take(); err == nil {
			return a, nil
		}
	}
	if len(l) == 1 {
		return a, err
	}
	var each []string
	for _, p := range l {
		each = append(each, fmt.Sprintf("%s (%s to %s, %d in use)", p.subnet, p.first, p.last, len(p.taken)))
	}
	return a, api.Errorf(api.ResourceExhausted, "network %s: no free address in any of its subnets %s; remove containers from the network or create one with larger subnets",
		l[0].network, strings.Join(each, ", "))
}

// claim takes a given address.
func (l pools) claim(a netip.Addr) error {
	if p := l.of(a); p != nil {
		return p.claim(a)
	}
	return l[0].claim(a) // which says that it is not in there
}

// retake takes an address that take has given out before, if it could be given out now.
func (l pools) retake(a netip.Addr) bool {
	p := l.of(a)
	return p != nil && a.Compare(p.first) >= 0 && a.Compare(p.last) <= 0 && p.claim(a) == nil
}

func (l pools) release(a netip.Addr) {
	if p := l.of(a); p != nil {
		p.release(a)
	}
}
