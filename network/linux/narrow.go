package linux

import (
	"errors"
	"maps"

	"github.com/legion-swarm/legion/network"
)

// Narrow implements network.Dataplane. Who changes backends holds lists: Narrow, and
// a Set for as long as it changes them, some milliseconds; not while it makes
// sandboxes, devices or rules of the host.
func (p *Plane) Narrow(c *network.Config) {
	if err := p.keeper.Narrow(c.Zones); err != nil {
		p.log.Warn("network: names of what leaves can't be taken back at once", "error", err)
	}
	p.lists.Lock()
	defer p.lists.Unlock()
	p.newest = c
	if err := errors.Join(p.balancing.narrow(c), p.narrowMesh(c)); err != nil {
		p.log.Warn("network: tasks that leave get connections until the next change: they can't be taken out at once", "error", err)
	}
}

// takeCuts returns what is believed to be there, with what Narrow has made of
// balancers since. Only Set calls it, at its begin.
func (p *Plane) takeCuts() *network.Config {
	p.lists.Lock()
	defer p.lists.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have == nil || len(p.balancing.cut) == 0 {
		return p.have
	}
	have := *p.have
	have.Balancers = maps.Clone(have.Balancers)
	for k, less := range p.balancing.cut {
		if have.Balancers[k] != nil {
			have.Balancers[k] = less
		}
	}
	p.have = &have
	return p.have
}
