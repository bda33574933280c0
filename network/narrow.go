package network

// Narrowed returns the balancer with only those backends that are also in o's, which
// may be nil; b itself if it has no others.
func (b *Balancer) Narrowed(o *Balancer) *Balancer {
	if b == o {
		return b
	}
	n := *b
	if o == nil {
		n.Backends = nil
	} else {
		n.Backends = narrowed(b.Backends, o.Backends)
	}
	if len(n.Backends) == len(b.Backends) {
		return b
	}
	return &n
}

// Narrowed returns the port with only those backends that are also in o's, which may
// be nil; p itself if it has no others.
func (p *MeshPort) Narrowed(o *MeshPort) *MeshPort {
	if p == o {
		return p
	}
	n := *p
	if o == nil {
		n.Backends = nil
	} else {
		n.Backends = narrowed(p.Backends, o.Backends)
	}
	if len(n.Backends) == len(p.Backends) {
		return p
	}
	return &n
}

// NarrowBalancer returns b without the backends that c lacks. What there is of
// networks of which c knows nothing stays. c may be nil: b itself.
func (c *Config) NarrowBalancer(b *Balancer) *Balancer {
	if c == nil {
		return b
	}
	o := c.Balancers[b.BalancerKey]
	if o == nil && c.Overlays[b.Network] != nil && c.Overlays[b.Network].Unknown {
		return b
	}
	return b.Narrowed(o)
}

// NarrowMeshPort returns p without the backends that c lacks. c may be nil: p
// itself.
func (c *Config) NarrowMeshPort(p *MeshPort) *MeshPort {
	if c == nil {
		return p
	}
	return p.Narrowed(c.MeshPorts[p.MeshKey])
}
