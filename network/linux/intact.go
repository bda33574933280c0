package linux

import (
	"slices"

	"github.com/google/nftables"
)

// intact reports whether a table has the rules and elements that we left in it:
// by number for rules, by key and target for ports.
func (p *Plane) intact(f nftables.TableFamily, want *ruleset) bool {
	c, err := p.connect()
	if err != nil {
		return false
	}
	b := &tableBuilder{c: c, family: f, t: &nftables.Table{Family: f, Name: p.table}}
	if b.fill(want) != nil { // counted, never flushed
		return false
	}
	for chain, n := range b.rules {
		rules, err := c.GetRules(b.t, &nftables.Chain{Name: chain})
		if err != nil || len(rules) != n {
			return false
		}
	}
	found := map[string]string{}
	for _, m := range []*nftables.Set{b.byPort, b.byAddr} {
		elements, err := c.GetSetElements(m)
		if err != nil {
			return false
		}
		for _, e := range elements {
			found[string(e.Key)] = string(e.Val)
		}
	}
	for k, target := range want.ports {
		e := b.element(k, target)
		if found[string(e.Key)] != string(e.Val) {
			return false
		}
	}
	open, err := c.GetSetElements(b.open)
	if err != nil || len(open) != len(want.open) {
		return false
	}
	keys := map[string]bool{}
	for k := range want.open {
		keys[string(portKey(k))] = true
	}
	return len(found) == len(want.ports) && !slices.ContainsFunc(open, func(e nftables.SetElement) bool { return !keys[string(e.Key)] })
}
