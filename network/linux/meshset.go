package linux

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"

	"github.com/legion-swarm/legion/network"
)

// narrowMesh takes backends away that c lacks, in one transaction. Callers hold
// lists.
func (p *Plane) narrowMesh(c *network.Config) error {
	have := p.mesh.rules
	if have == nil {
		return nil // the next Set does not put them there
	}
	if less := have.narrowed(c); less != have {
		return p.setMeshRules(less)
	}
	return nil
}

// setMeshRules makes the table what it should be, in one transaction: all of it,
// or only what differs. Callers hold lists.
func (p *Plane) setMeshRules(want *meshRules) error {
	have := p.mesh.rules
	if have != nil && !have.sameFrame(want) {
		have = nil
	}
	var drop, put, change []network.MeshKey
	if have == nil {
		have = &meshRules{}
	}
	for k, h := range have.ports {
		switch w := want.ports[k]; {
		case w == nil:
			drop = append(drop, k)
		case w.equal(h):
			want.ports[k] = h
		case w.sameShape(h):
			change = append(change, k)
		default:
			drop = append(drop, k)
		}
	}
	for k, w := range want.ports {
		if h := have.ports[k]; h == nil || h != w && !w.sameShape(h) {
			put = append(put, k)
		}
		if w.slots4 == nil && w.slots6 == nil {
			w.place(have.ports[k])
		}
	}
	whole := have.ports == nil
	if !whole && len(drop)+len(put)+len(change) == 0 {
		p.mesh.rules = want
		return nil
	}
	for _, l := range [][]network.MeshKey{drop, put, change} {
		slices.SortFunc(l, compareMeshKeys)
	}
	err := p.transact(func(c *filterConn) error {
		b := p.newMeshBuilder(c, want)
		if whole {
			c.AddTable(b.t) // so that there is one to delete
			c.DelTable(b.t)
			c.AddTable(b.t)
			return b.fill()
		}
		for _, k := range drop {
			if err := b.dropPort(k, have.ports[k]); err != nil {
				return err
			}
		}
		for _, k := range put {
			if err := b.putPort(k, want.ports[k]); err != nil {
				return err
			}
		}
		for _, k := range change {
			if err := b.changePort(k, have.ports[k], want.ports[k]); err != nil {
				return err
			}
		}
		return nil
	})
	p.mesh.rules = nil
	if err != nil {
		return fmt.Errorf("packet filter rules (nftables, table %s): %w", p.meshTable().Name, err)
	}
	p.mesh.rules, p.mesh.looked = want, true
	return nil
}

func (p *Plane) dropMeshTable() error {
	return p.transact(func(c *filterConn) error {
		t := p.meshTable()
		c.AddTable(t)
		c.DelTable(t)
		return nil
	})
}

// meshIntact reports whether the table has the rules and elements that we left
// in it, by number.
func (p *Plane) meshIntact(want *meshRules) bool {
	c, err := p.connect()
	if err != nil {
		return false
	}
	b := p.newMeshBuilder(c, want)
	if b.fill() != nil { // counted, never flushed
		return false
	}
	for chain, n := range b.rules {
		rules, err := c.GetRules(b.t, &nftables.Chain{Name: chain})
		if err != nil || len(rules) != n {
			return false
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.maps)) {
		elements, err := c.GetSetElements(&nftables.Set{Table: b.t, Name: name})
		if err != nil || len(elements) != b.maps[name] {
			return false
		}
	}
	return true
}
