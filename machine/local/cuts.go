package local

import (
	"fmt"
	"net/netip"
	"slices"
)

// everything stands for all that is not the machine, in a cut.
const everything = "*"

// cut is a partition between machine A and B; B may be everything.
type cut struct{ A, B string }

func (c cut) concerns(name string) bool { return c.A == name || c.B == name }

func (c cut) between(a, b string) bool { return c == cut{a, b} || c == cut{b, a} }

// disconnect adds cuts between the machine and those others, or everything.
func disconnect(cuts []cut, name string, from []string) []cut {
	if len(from) == 0 {
		from = []string{everything}
	}
	cuts = slices.Clone(cuts)
	for _, other := range from {
		if !slices.ContainsFunc(cuts, func(c cut) bool { return c.between(name, other) }) {
			cuts = append(cuts, cut{name, other})
		}
	}
	return cuts
}

// connect removes cuts. A machine that is cut from everything can't be joined
// to one other alone.
func connect(cuts []cut, name string, to []string) ([]cut, error) {
	if len(to) == 0 {
		return slices.DeleteFunc(slices.Clone(cuts), func(c cut) bool { return c.concerns(name) }), nil
	}
	for _, c := range cuts {
		if c.B == everything && (c.A == name || slices.Contains(to, c.A)) {
			return nil, fmt.Errorf("%s is disconnected from everything: connect it wholly (legion machine connect %s), then disconnect it from some", c.A, c.A)
		}
	}
	return slices.DeleteFunc(slices.Clone(cuts), func(c cut) bool {
		return slices.ContainsFunc(to, func(other string) bool { return c.between(name, other) })
	}), nil
}

// cutsOf are the machines that one is cut from, sorted; everything: from all.
func cutsOf(cuts []cut, name string) (from []string, all bool) {
	for _, c := range cuts {
		switch {
		case c == cut{name, everything}:
			all = true
		case c.A == name:
			from = append(from, c.B)
		case c.B == name:
			from = append(from, c.A)
		}
	}
	slices.Sort(from)
	return from, all
}

// drop is a rule of the fabric: IP packets from one port to another are lost.
// An empty port is any.
type drop struct{ In, Out string }

// drops are the rules that make the cuts.
func drops(cuts []cut, hosts map[string]netip.Addr) []drop {
	var all []drop
	for _, c := range cuts {
		a, ok := hosts[c.A]
		if !ok {
			continue
		}
		if c.B == everything {
			all = append(all, drop{In: port(a)}, drop{Out: port(a)})
		} else if b, ok := hosts[c.B]; ok {
			all = append(all, drop{port(a), port(b)}, drop{port(b), port(a)})
		}
	}
	return all
}
