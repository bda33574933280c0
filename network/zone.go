package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Zone is what the resolver knows of a network.
type Zone struct {
	ID string // of the network
	// Name of the network: what is called web in it is also called web.NAME.
	Name string
	// Names in lower case, without a dot at the end, each with the addresses that
	// it stands for. A name without addresses exists all the same.
	Names map[string][]netip.Addr
	// Owners says whose an address is, for reverse lookups.
	Owners map[netip.Addr]string
}

// Resolver is how a sandbox's names are resolved.
type Resolver struct {
	// Zones by network id: the first that knows a name answers.
	Zones []string
	// Servers are asked, in this order, for what no zone knows. They are reached
	// from the host, except those in Inside.
	Servers []netip.AddrPort
	// Inside has servers be asked from the sandbox's own namespace.
	Inside bool
}

// Equal reports whether the two mean the same.
func (z *Zone) Equal(o *Zone) bool {
	return z == o || z.ID == o.ID && z.Name == o.Name && maps.EqualFunc(z.Names, o.Names, slices.Equal[[]netip.Addr]) &&
		maps.Equal(z.Owners, o.Owners)
}

// Equal reports whether the two mean the same. Either may be nil.
func (r *Resolver) Equal(o *Resolver) bool {
	if r == nil || o == nil {
		return r == o
	}
	return slices.Equal(r.Zones, o.Zones) && slices.Equal(r.Servers, o.Servers) && r.Inside == o.Inside
}

// Narrowed returns the zone with only those names, addresses and owners that
// are also in o; z itself if it has no others.
func (z *Zone) Narrowed(o *Zone) *Zone {
	if z == o {
		return z
	}
	var fewer *Zone
	change := func() *Zone {
		if fewer == nil {
			fewer = &Zone{ID: z.ID, Name: z.Name, Names: maps.Clone(z.Names), Owners: maps.Clone(z.Owners)}
		}
		return fewer
	}
	for name, l := range z.Names {
		if also, ok := o.Names[name]; !ok {
			delete(change().Names, name)
		} else if rest := narrowed(l, also); len(rest) < len(l) {
			change().Names[name] = rest
		}
	}
	for a, owner := range z.Owners {
		if o.Owners[a] != owner {
			delete(change().Owners, a)
		}
	}
	if fewer == nil {
		return z
	}
	return fewer
}

// narrowed returns those of l that are also in o, in l's order; l itself if all
// are.
func narrowed(l, o []netip.Addr) []netip.Addr {
	if slices.Equal(l, o) {
		return l
	}
	in := make(map[netip.Addr]struct{}, len(o))
	for _, a := range o {
		in[a] = struct{}{}
	}
	out := func(a netip.Addr) bool {
		_, ok := in[a]
		return !ok
	}
	if !slices.ContainsFunc(l, out) {
		return l
	}
	return slices.DeleteFunc(slices.Clone(l), out)
}

func (z *Zone) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "zone %s %s\n", z.ID, z.Name)
	for _, name := range slices.Sorted(maps.Keys(z.Names)) {
		b.WriteString("  " + name)
		for _, a := range z.Names[name] {
			b.WriteString(" " + a.String())
		}
		b.WriteString("\n")
	}
	for _, a := range slices.SortedFunc(maps.Keys(z.Owners), netip.Addr.Compare) {
		fmt.Fprintf(&b, "  %s is %s\n", a, z.Owners[a])
	}
	return b.String()
}

func (r *Resolver) String() string {
	s := "resolver " + strings.Join(r.Zones, " ") + " else"
	for _, a := range r.Servers {
		s += " " + a.String()
	}
	return s + flag(r.Inside, "inside")
}

func (c *Config) validateZones() error {
	for id, z := range c.Zones {
		if id == "" || id != z.ID {
			return fmt.Errorf("zone %q is listed as %q", z.ID, id)
		}
		for name := range z.Names {
			if name != strings.ToLower(name) || strings.HasSuffix(name, ".") || name == "" {
				return fmt.Errorf("zone %s: name %q is empty, not in lower case or ends with a dot", id, name)
			}
		}
	}
	return nil
}
