package linux

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/legion-swarm/legion/network"
)

// Ways to have virtual addresses lead to backends, for Config.Balancer.
const (
	// BalancerEBPF chooses when a socket connects: programs at the cgroup.
	BalancerEBPF = "ebpf"
	// BalancerNFTables translates in each sandbox.
	BalancerNFTables = "nftables"
)

// vipBox is a sandbox that has virtual addresses.
type vipBox struct {
	id, path string
	networks []string // in the order of its interfaces
}

func (p *Plane) box(s *network.Sandbox) *vipBox {
	b := &vipBox{id: s.ID, path: p.Path(s.ID)}
	for i := range s.Interfaces {
		if o := s.Interfaces[i].Overlay; o != "" && !slices.Contains(b.networks, o) {
			b.networks = append(b.networks, o)
		}
	}
	return b
}

// balancerChange is what a driver has to do.
type balancerChange struct {
	// all: what is there is not known, or may not be what it was. Everything in now
	// is to be, and nothing else; put and drop have no meaning.
	all bool
	// narrow: backends are taken away while a Set may be under way, and sandboxes may
	// be about to go.
	narrow  bool
	now     *network.Config
	boxes   []*vipBox // with all: every one
	leave   []string
	put     []*network.Balancer
	drop    []network.BalancerKey
	unknown map[string]bool // networks of which what is there stays
}

// balancerDriver makes virtual addresses lead to backends. Callers hold
// Plane.lists.
type balancerDriver interface {
	// found returns the balancers that are there, of some networks, as far as that
	// can be told.
	found(networks map[string]bool) (map[network.BalancerKey]*network.Balancer, error)
	apply(c *balancerChange) error
	// remove takes everything out of the kernel.
	remove(boxes []*vipBox) error
	// close leaves the kernel as it is.
	close() error
}

// balancing is the plane's part that has to do with virtual addresses.
type balancing struct {
	p      *Plane
	forced string
	ebpf   ebpfPlaces

	// Guarded by Plane.lists.
	driver balancerDriver
	unsure bool
	there  map[network.BalancerKey]*network.Balancer // after the driver's last change for a Set
	cut    map[network.BalancerKey]*network.Balancer // what was made of these since, by narrow

	// vips are the addresses that overlays' bridges have for services. Owned by Set.
	vips map[string]*bridgeVIPs

	mu     sync.Mutex
	chosen string
	reason error // why the fallback
}

func newBalancing(p *Plane, c *Config) (*balancing, error) {
	switch c.Balancer {
	case "", BalancerEBPF, BalancerNFTables:
	default:
		return nil, fmt.Errorf("network: %q is not a way to balance: want %s or %s", c.Balancer, BalancerEBPF, BalancerNFTables)
	}
	return &balancing{
		p: p, forced: c.Balancer, ebpf: ebpfPlaces{pins: c.BPF, cgroup: c.Cgroup}, unsure: true, vips: map[string]*bridgeVIPs{},
	}, nil
}

// Balancer tells how virtual addresses are made to lead to backends on this
// host, and why not by eBPF. It tries that out if it is not known yet.
func (p *Plane) Balancer() (driver string, fallback error) { return p.balancing.choice() }

func (b *balancing) choice() (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.chosen != "" {
		return b.chosen, b.reason
	}
	if b.chosen = b.forced; b.chosen != "" {
		return b.chosen, nil
	}
	b.chosen = BalancerEBPF
	if b.reason = b.ebpf.probe(); b.reason != nil {
		b.chosen = BalancerNFTables
		b.p.log.Info("network: service addresses are translated by nftables: eBPF is not to be had here", "reason", b.reason)
	}
	return b.chosen, b.reason
}

// open gets the driver. Of what another driver left it takes care.
func (b *balancing) open(now *network.Config) error {
	if b.driver != nil {
		return nil
	}
	kind, _ := b.choice()
	if kind == BalancerNFTables {
		b.driver = newNFTBalancer(b.p)
		return b.ebpf.erase()
	}
	if !b.ebpf.pinned() {
		if err := newNFTBalancer(b.p).remove(b.boxes(now)); err != nil {
			return err
		}
	}
	d, err := openEBPF(b.p, b.ebpf)
	if err != nil {
		return err
	}
	b.driver = d
	return nil
}

func (b *balancing) boxes(c *network.Config) []*vipBox {
	var l []*vipBox
	for _, s := range c.Sandboxes {
		if x := b.p.box(s); len(x.networks) > 0 {
			l = append(l, x)
		}
	}
	return l
}

// observe says what is there, as far as it isn't as it was last set: of networks
// that nobody knows about yet, the balancers that an earlier daemon left.
func (b *balancing) observe(was, want, now *network.Config) {
	b.p.lists.Lock()
	defer b.p.lists.Unlock()
	b.unsure = true
	clear(b.vips)
	if was != nil {
		return
	}
	unknown := unknownNetworks(want)
	if len(unknown) == 0 {
		return
	}
	err := b.open(now)
	if err == nil {
		now.Balancers, err = b.driver.found(unknown)
	}
	if err != nil {
		b.p.log.Warn("network: can't read the service addresses that are there", "error", err)
		now.Balancers = map[network.BalancerKey]*network.Balancer{}
	}
}

// unknownNetworks are those of which this node knows nothing yet: what is there
// stays.
func unknownNetworks(c *network.Config) map[string]bool {
	m := map[string]bool{}
	for id, o := range c.Overlays {
		if o.Unknown {
			m[id] = true
		}
	}
	return m
}

// services is the first step of a Set: tasks that leave do so before anything
// that takes long is done. It does what it can; the rest is for set.
func (b *balancing) services(ch *network.Changes, now *network.Config) (done bool) {
	b.p.lists.Lock()
	defer b.p.lists.Unlock()
	if b.unsure || b.driver == nil || len(ch.PutBalancers)+len(ch.DropBalancers) == 0 {
		return false
	}
	if err := b.apply(b.change(ch, now, false)); err != nil {
		b.unsure = true // set tries it all again, and says what is wrong
		return false
	}
	return true
}

// apply has the driver make a change for a Set, but for what Narrow has taken back.
// Callers hold lists.
func (b *balancing) apply(c *balancerChange) error {
	now := c.now.Balancers
	for k, p := range b.cut {
		if now[k] != nil {
			now[k] = p
		}
	}
	for i, p := range c.put {
		c.put[i] = b.p.newest.NarrowBalancer(p)
		now[p.BalancerKey] = c.put[i]
	}
	if c.all {
		for k, p := range now {
			now[k] = b.p.newest.NarrowBalancer(p)
		}
	}
	if err := b.driver.apply(c); err != nil {
		return err
	}
	b.there, b.cut = maps.Clone(now), nil
	return nil
}

// narrow takes backends away that c lacks. Callers hold lists.
func (b *balancing) narrow(c *network.Config) error {
	if b.driver == nil {
		return nil // the next Set does not put them there
	}
	n := &balancerChange{narrow: true, unknown: unknownNetworks(c)}
	for k, p := range b.there {
		if less := b.cut[k]; less != nil {
			p = less
		}
		if less := c.NarrowBalancer(p); less != p {
			n.put = append(n.put, less)
		}
	}
	if len(n.put) == 0 {
		return nil
	}
	if b.cut == nil {
		b.cut = map[network.BalancerKey]*network.Balancer{}
	}
	for _, p := range n.put {
		b.cut[p.BalancerKey] = p
	}
	n.now = &network.Config{Balancers: maps.Clone(b.there)}
	maps.Copy(n.now.Balancers, b.cut)
	err := b.driver.apply(n)
	b.unsure = b.unsure || err != nil
	return err
}

// change takes balancers over into now; done: they are there already. Callers hold
// lists.
func (b *balancing) change(ch *network.Changes, now *network.Config, done bool) *balancerChange {
	c := &balancerChange{all: b.unsure || b.driver == nil, now: now, put: slices.Clone(ch.PutBalancers), unknown: unknownNetworks(ch.To)}
	for _, k := range ch.DropBalancers {
		if !c.unknown[k.Network] {
			delete(now.Balancers, k)
			c.drop = append(c.drop, k)
		}
	}
	if !done {
		for _, p := range ch.PutBalancers {
			now.Balancers[p.BalancerKey] = p
		}
	}
	return c
}

// set makes the changes that have to do with virtual addresses, after those of
// sandboxes and overlays. done: services have been seen to.
func (b *balancing) set(ch *network.Changes, now *network.Config, done bool, f *failures) {
	b.p.lists.Lock()
	c := b.change(ch, now, done)
	if len(now.Balancers) == 0 && len(c.unknown) == 0 {
		f.add(network.BalancersItem, b.clear(now))
		b.p.lists.Unlock()
		return
	}
	b.p.lists.Unlock()
	b.gather(c, ch)
	whole := b.setVIPs(c, ch, f)
	if done {
		c.put, c.drop = nil, nil
	}
	b.p.lists.Lock()
	defer b.p.lists.Unlock()
	if b.unsure && !c.all { // by Narrow
		whole = false
	}
	if c.all || len(c.boxes)+len(c.leave)+len(c.put)+len(c.drop) > 0 {
		err := b.open(now)
		if err == nil {
			err = b.apply(c)
		}
		whole = whole && err == nil
		b.blame(err, ch, now, f)
	}
	b.unsure = !whole
}

// gather finds the sandboxes that are concerned.
func (b *balancing) gather(c *balancerChange, ch *network.Changes) {
	if c.all {
		c.boxes = b.boxes(c.now)
		return
	}
	c.leave = append(c.leave, ch.DropSandboxes...)
	for _, s := range ch.PutSandboxes {
		if got := c.now.Sandboxes[s.ID]; got != nil {
			if x := b.p.box(got); len(x.networks) > 0 {
				c.boxes = append(c.boxes, x)
				continue
			}
		}
		c.leave = append(c.leave, s.ID)
	}
}

// blame says what could not be done. The next Set tries it all again.
func (b *balancing) blame(err error, ch *network.Changes, now *network.Config, f *failures) {
	if err == nil {
		return
	}
	f.add(network.BalancersItem, err)
	for _, p := range ch.PutBalancers {
		delete(now.Balancers, p.BalancerKey)
	}
	for _, s := range ch.PutSandboxes {
		if x := b.p.box(s); len(x.networks) > 0 {
			f.add(network.SandboxItem(s.ID), fmt.Errorf("service addresses: %w", err))
		}
	}
}

// clear takes everything away. Callers hold lists.
func (b *balancing) clear(now *network.Config) error {
	if b.driver == nil && !b.unsure {
		return nil
	}
	var err error
	if b.driver == nil {
		err = b.ebpf.erase()
		if kind, _ := b.known(); kind == BalancerNFTables {
			b.driver = newNFTBalancer(b.p)
		}
	}
	if b.driver != nil {
		err = errors.Join(err, b.driver.remove(b.boxes(now)))
	}
	b.there, b.cut = nil, nil
	err = errors.Join(err, b.clearVIPs(now))
	if b.unsure = err != nil; err == nil {
		b.driver = nil
	}
	return err
}

// known is the choice if it has been made.
func (b *balancing) known() (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.chosen, b.reason
}

func (b *balancing) close() error {
	if b.driver == nil {
		return nil
	}
	return b.driver.close()
}
