package keeper

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/legion-swarm/legion/network"
)

// agreed returns the zones that were set, without what the newest ones lack; newest
// is nil if there are none yet.
func agreed(set, newest map[string]*network.Zone) map[string]*network.Zone {
	if newest == nil || maps.Equal(set, newest) {
		return set
	}
	zones := make(map[string]*network.Zone, len(set))
	for id, z := range set {
		if n := newest[id]; n != nil {
			zones[id] = z.Narrowed(n)
		}
	}
	return zones
}

// zonesBetween returns what makes zones of others, in parts; none if they are the
// same. anew: it is not known what there is.
func zonesBetween(from, to map[string]*network.Zone, anew bool) []*zonesDelta {
	if anew {
		from = nil
	}
	p := zoneParts{parts: []*zonesDelta{{Anew: anew}}}
	for _, id := range slices.Sorted(maps.Keys(from)) {
		if to[id] == nil {
			p.of().Drop = append(p.of().Drop, id)
			p.took(1)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(to)) {
		if was := from[id]; was != to[id] {
			p.zone(was, to[id])
		}
	}
	last := p.of()
	if !anew && len(last.Drop)+len(last.Zones) == 0 {
		if p.parts = p.parts[:len(p.parts)-1]; len(p.parts) == 0 {
			return nil
		}
	}
	for _, d := range p.parts[:len(p.parts)-1] {
		d.More = true
	}
	return p.parts
}

// zoneParts gathers a change.
type zoneParts struct {
	parts []*zonesDelta
	size  int // of the last
}

func (p *zoneParts) of() *zonesDelta { return p.parts[len(p.parts)-1] }

// took begins another part if the last one has become large.
func (p *zoneParts) took(n int) (full bool) {
	if p.size += n; p.size < portion {
		return false
	}
	p.parts, p.size = append(p.parts, &zonesDelta{}), 0
	return true
}

// zone adds what makes one zone of another, which may be nil.
func (p *zoneParts) zone(from, to *network.Zone) {
	isNew := from == nil
	if isNew {
		from = &network.Zone{}
	}
	var d *zoneDelta
	open := func() *zoneDelta {
		if d == nil {
			last := p.of()
			last.Zones = append(last.Zones, zoneDelta{ID: to.ID, Name: to.Name})
			d = &last.Zones[len(last.Zones)-1]
		}
		return d
	}
	took := func(n int) {
		if p.took(n) {
			d = nil
		}
	}
	if isNew || from.Name != to.Name {
		open()
	}
	for name := range from.Names {
		if _, stays := to.Names[name]; !stays {
			open().Drop = append(open().Drop, name)
			took(1)
		}
	}
	for name, l := range to.Names {
		if was, known := from.Names[name]; !known || !slices.Equal(was, l) {
			open().Put = append(open().Put, nameDelta{name, l})
			took(1 + len(l))
		}
	}
	for a := range from.Owners {
		if _, stays := to.Owners[a]; !stays {
			open().DropOwners = append(open().DropOwners, a)
			took(1)
		}
	}
	for a, owner := range to.Owners {
		if was, known := from.Owners[a]; !known || was != owner {
			open().Owners = append(open().Owners, ownerDelta{a, owner})
			took(1)
		}
	}
}

// zonesState are the names that a keeper is told, part by part.
type zonesState struct {
	is     map[string]*network.Zone // to the last whole change; not changed any more
	staged map[string]*network.Zone // nil: no change is under way
	own    map[string]bool          // zones that were copied since
}

// apply takes a part, and reports whether the change is whole.
func (s *zonesState) apply(d *zonesDelta) (whole bool) {
	if s.staged == nil {
		s.own = map[string]bool{}
		if s.staged = maps.Clone(s.is); s.staged == nil || d.Anew {
			s.staged = map[string]*network.Zone{}
		}
	}
	for _, id := range d.Drop {
		delete(s.staged, id)
		delete(s.own, id)
	}
	for i := range d.Zones {
		s.zone(&d.Zones[i])
	}
	if d.More {
		return false
	}
	s.is, s.staged = s.staged, nil
	return true
}

// abandon forgets what has come of a change that is not whole.
func (s *zonesState) abandon() { s.staged = nil }

func (s *zonesState) zone(d *zoneDelta) {
	z := s.staged[d.ID]
	if !s.own[d.ID] {
		fresh := &network.Zone{ID: d.ID, Names: map[string][]netip.Addr{}, Owners: map[netip.Addr]string{}}
		if z != nil {
			fresh.Names, fresh.Owners = maps.Clone(z.Names), maps.Clone(z.Owners)
		}
		z = fresh
		s.staged[d.ID], s.own[d.ID] = z, true
	}
	z.Name = d.Name
	for _, name := range d.Drop {
		delete(z.Names, name)
	}
	for _, n := range d.Put {
		z.Names[n.Name] = n.Addresses
	}
	for _, a := range d.DropOwners {
		delete(z.Owners, a)
	}
	for _, o := range d.Owners {
		z.Owners[o.Address] = o.Owner
	}
}
