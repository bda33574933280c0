package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// BalancerKey is a virtual address of a network.
type BalancerKey struct {
	Network string // id
	Address netip.Addr
}

func (k BalancerKey) String() string { return k.Address.String() + " in " + k.Network }

func (k BalancerKey) compare(o BalancerKey) int {
	if c := strings.Compare(k.Network, o.Network); c != 0 {
		return c
	}
	return k.Address.Compare(o.Address)
}

// Balance is how new connections are given to backends.
type Balance string

// Ways to choose a backend.
const (
	// BalanceRandom gives each backend the same share.
	BalanceRandom Balance = ""
	// BalanceClient gives connections of one client address to one backend, as
	// long as that serves.
	BalanceClient Balance = "client"
	// BalanceLeast prefers, of two backends chosen at random, the one with fewer
	// connections from this node.
	BalanceLeast Balance = "least"
)

// Balancer is a virtual address and what it leads to, for containers of its
// network on this node.
type Balancer struct {
	BalancerKey
	// Backends that take new connections now, sorted, of the address's family.
	// Without any, connections are refused at once.
	Backends []netip.Addr
	Balance  Balance
}

// Equal reports whether the two mean the same.
func (b *Balancer) Equal(o *Balancer) bool {
	return b == o || b.BalancerKey == o.BalancerKey && b.Balance == o.Balance && slices.Equal(b.Backends, o.Backends)
}

func (b *Balancer) String() string {
	s := "balancer " + b.BalancerKey.String() + flag(b.Balance != "", string(b.Balance)) + " ->"
	for _, a := range b.Backends {
		s += " " + a.String()
	}
	return s + "\n"
}

func validBackends(list []netip.Addr, four bool) error {
	for _, a := range list {
		if !a.IsValid() || a.Is4() != four {
			return fmt.Errorf("backend %s is of another family", a)
		}
	}
	if !slices.IsSortedFunc(list, netip.Addr.Compare) {
		return fmt.Errorf("backends are not sorted")
	}
	return nil
}

func (c *Config) validateBalancers() error {
	for k, b := range c.Balancers {
		if k != b.BalancerKey || k.Network == "" || !k.Address.IsValid() {
			return fmt.Errorf("balancer %s is listed as %s", b.BalancerKey, k)
		}
		if err := validBackends(b.Backends, k.Address.Is4()); err != nil {
			return fmt.Errorf("balancer %s: %w", k, err)
		}
	}
	return nil
}
