package network

import (
	"maps"
	"slices"
	"strings"
)

// Changes is what leads from one Config to another. Lists are sorted, so that
// the same two configs always give the same changes.
type Changes struct {
	// Options is set when a switch (Rules4, Rules6, Forward, UserProxy) or the
	// underlay differs;
	// To has the new ones.
	Options bool
	To      *Config

	DropOverlays  []string
	PutOverlays   []*Overlay // new or different
	DropBridges   []string
	PutBridges    []*Bridge // new or different
	DropSandboxes []string
	PutSandboxes  []*Sandbox // new or different
	DropPorts     []PortKey
	PutPorts      []*Port // new or different
	DropZones     []string
	PutZones      []*Zone // new or different
	DropBalancers []BalancerKey
	PutBalancers  []*Balancer // new or different
	DropMeshPorts []MeshKey
	PutMeshPorts  []*MeshPort // new or different
	// Mesh and Keys are set when these differ; To has the new ones.
	Mesh, Keys bool
}

// Diff returns what leads from one config to another. A nil config is an empty
// one.
func Diff(from, to *Config) *Changes {
	if from == nil {
		from = &Config{}
	}
	if to == nil {
		to = &Config{}
	}
	ch := &Changes{To: to, Options: from.Rules4 != to.Rules4 || from.Rules6 != to.Rules6 ||
		from.Forward != to.Forward || from.UserProxy != to.UserProxy || from.Underlay != to.Underlay}
	ch.DropOverlays, ch.PutOverlays = diff(from.Overlays, to.Overlays, (*Overlay).Equal)
	ch.DropBridges, ch.PutBridges = diff(from.Bridges, to.Bridges, (*Bridge).Equal)
	ch.DropSandboxes, ch.PutSandboxes = diff(from.Sandboxes, to.Sandboxes, (*Sandbox).Equal)
	ch.DropPorts, ch.PutPorts = diff(from.Ports, to.Ports, func(a, b *Port) bool { return a == b || *a == *b })
	ch.DropZones, ch.PutZones = diff(from.Zones, to.Zones, (*Zone).Equal)
	ch.DropBalancers, ch.PutBalancers = diff(from.Balancers, to.Balancers, (*Balancer).Equal)
	ch.DropMeshPorts, ch.PutMeshPorts = diff(from.MeshPorts, to.MeshPorts, (*MeshPort).Equal)
	ch.Mesh = !from.Mesh.Equal(to.Mesh)
	ch.Keys = from.Keys.Send != to.Keys.Send || !slices.Equal(from.Keys.All, to.Keys.All)
	ch.sort()
	return ch
}

func (ch *Changes) sort() {
	slices.Sort(ch.DropOverlays)
	slices.SortFunc(ch.PutOverlays, func(a, b *Overlay) int { return strings.Compare(a.ID, b.ID) })
	slices.Sort(ch.DropBridges)
	slices.Sort(ch.DropSandboxes)
	slices.SortFunc(ch.DropPorts, PortKey.compare)
	slices.SortFunc(ch.PutBridges, func(a, b *Bridge) int { return strings.Compare(a.Device, b.Device) })
	slices.SortFunc(ch.PutSandboxes, func(a, b *Sandbox) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(ch.PutPorts, func(a, b *Port) int { return a.PortKey.compare(b.PortKey) })
	slices.Sort(ch.DropZones)
	slices.SortFunc(ch.PutZones, func(a, b *Zone) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(ch.DropBalancers, BalancerKey.compare)
	slices.SortFunc(ch.PutBalancers, func(a, b *Balancer) int { return a.BalancerKey.compare(b.BalancerKey) })
	slices.SortFunc(ch.DropMeshPorts, MeshKey.compare)
	slices.SortFunc(ch.PutMeshPorts, func(a, b *MeshPort) int { return a.MeshKey.compare(b.MeshKey) })
}

func diff[K comparable, V any](from, to map[K]*V, equal func(a, b *V) bool) (drop []K, put []*V) {
	for k := range from {
		if to[k] == nil {
			drop = append(drop, k)
		}
	}
	for k, v := range to {
		if old := from[k]; old == nil || !equal(old, v) {
			put = append(put, v)
		}
	}
	return drop, put
}

// Empty reports whether there is nothing to do.
func (ch *Changes) Empty() bool {
	return !ch.Options && !ch.Mesh && !ch.Keys && len(ch.DropOverlays)+len(ch.PutOverlays)+len(ch.DropBridges)+len(ch.PutBridges)+len(ch.DropSandboxes)+len(ch.PutSandboxes)+
		len(ch.DropPorts)+len(ch.PutPorts)+len(ch.DropZones)+len(ch.PutZones)+len(ch.DropBalancers)+len(ch.PutBalancers)+
		len(ch.DropMeshPorts)+len(ch.PutMeshPorts) == 0
}

// Apply returns the config that results from making the changes to from.
func (ch *Changes) Apply(from *Config) *Config {
	c := from.Clone()
	c.Rules4, c.Rules6, c.Forward, c.UserProxy = ch.To.Rules4, ch.To.Rules6, ch.To.Forward, ch.To.UserProxy
	c.Underlay = ch.To.Underlay
	c.Mesh, c.Keys = ch.To.Mesh, ch.To.Keys
	patch(c.Overlays, ch.DropOverlays, ch.PutOverlays, func(o *Overlay) string { return o.ID })
	patch(c.Bridges, ch.DropBridges, ch.PutBridges, func(b *Bridge) string { return b.Device })
	patch(c.Sandboxes, ch.DropSandboxes, ch.PutSandboxes, func(s *Sandbox) string { return s.ID })
	patch(c.Ports, ch.DropPorts, ch.PutPorts, func(p *Port) PortKey { return p.PortKey })
	patch(c.Zones, ch.DropZones, ch.PutZones, func(z *Zone) string { return z.ID })
	patch(c.Balancers, ch.DropBalancers, ch.PutBalancers, func(b *Balancer) BalancerKey { return b.BalancerKey })
	patch(c.MeshPorts, ch.DropMeshPorts, ch.PutMeshPorts, func(p *MeshPort) MeshKey { return p.MeshKey })
	return c
}

func patch[K comparable, V any](m map[K]*V, drop []K, put []*V, key func(*V) K) {
	for _, k := range drop {
		delete(m, k)
	}
	for _, v := range put {
		m[key(v)] = v
	}
}

// Clone returns a config with maps of its own that share their values with c's.
// A nil config gives an empty one.
func (c *Config) Clone() *Config {
	n := &Config{}
	if c != nil {
		*n = *c
	}
	n.Overlays, n.Bridges, n.Sandboxes, n.Ports = clone(n.Overlays), clone(n.Bridges), clone(n.Sandboxes), clone(n.Ports)
	n.Zones, n.Balancers, n.MeshPorts = clone(n.Zones), clone(n.Balancers), clone(n.MeshPorts)
	return n
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}
