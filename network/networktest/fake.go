// Package networktest has a network.Dataplane in memory and the conformance
// suite that it and the real one pass.
package networktest

import (
	"context"
	"maps"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

// Fake is a host and its data plane in memory. The zero value is not usable;
// see NewFake. All methods are safe for concurrent use.
type Fake struct {
	mu      sync.Mutex
	there   *network.Config
	busy    map[network.PortKey]bool
	failing map[network.Item]error
	host    network.Host
	sets    int
	made    map[string]int // sandboxes: how often
	alarms  map[chan struct{}]bool
	newest  *network.Config // that Narrow was called with
}

var _ network.Dataplane = (*Fake)(nil)

// NewFake returns a host with nothing but an uplink of MTU 1400, 10.99.0.0/24.
func NewFake() *Fake {
	return &Fake{
		there: (*network.Config)(nil).Clone(), busy: map[network.PortKey]bool{}, failing: map[network.Item]error{},
		made: map[string]int{}, alarms: map[chan struct{}]bool{},
		host: network.Host{MTU: 1400, IPv6: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}, Devices: map[string]network.Device{"up0": {MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.9/24")}}}},
	}
}

// Set implements network.Dataplane.
func (f *Fake) Set(ctx context.Context, c *network.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets++
	ch := network.Diff(f.there, c)
	next := ch.Apply(f.there)
	for _, k := range ch.DropBalancers {
		if o := c.Overlays[k.Network]; o != nil && o.Unknown {
			next.Balancers[k] = f.there.Balancers[k]
		}
	}
	f.narrow(next)
	failed := map[network.Item]error{}
	for _, b := range ch.PutBridges {
		if err := f.failing[network.BridgeItem(b.Device)]; err != nil {
			failed[network.BridgeItem(b.Device)] = err
			delete(next.Bridges, b.Device)
		}
	}
	for _, o := range ch.PutOverlays {
		if err := f.failing[network.OverlayItem(o.ID)]; err != nil {
			failed[network.OverlayItem(o.ID)] = err
			delete(next.Overlays, o.ID)
		}
	}
	for _, s := range ch.PutSandboxes {
		if err := f.failing[network.SandboxItem(s.ID)]; err != nil {
			failed[network.SandboxItem(s.ID)] = err
			delete(next.Sandboxes, s.ID)
		} else if f.there.Sandboxes[s.ID] == nil {
			f.made[s.ID]++
		}
	}
	for _, id := range ch.DropSandboxes {
		if err := f.failing[network.SandboxItem(id)]; err != nil {
			failed[network.SandboxItem(id)] = err
			next.Sandboxes[id] = f.there.Sandboxes[id]
		}
	}
	for _, p := range ch.PutPorts {
		if f.busy[p.PortKey] || f.meshHas(p.PortKey) {
			failed[network.PortItem(p.PortKey)] = network.ErrPortInUse
			delete(next.Ports, p.PortKey)
		}
	}
	for k := range next.MeshPorts {
		host := PortKeyOf(k)
		if f.busy[host] || next.Ports[host] != nil {
			failed[network.MeshPortItem(k)] = network.ErrPortInUse
			delete(next.MeshPorts, k)
		}
	}
	for id, o := range next.Overlays {
		if o.Encrypted && len(o.Peers) > 0 && len(next.Keys.All) == 0 {
			failed[network.TunnelItem(id)] = network.ErrNoKeys
		}
	}
	f.there = next
	if len(failed) > 0 {
		return &network.SetError{Items: failed}
	}
	return nil
}

// Narrow implements network.Dataplane.
func (f *Fake) Narrow(c *network.Config) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.newest = c
	f.there = f.there.Clone()
	f.narrow(f.there)
}

// narrow takes from c what the newest config lacks. Callers hold mu.
func (f *Fake) narrow(c *network.Config) {
	if f.newest == nil {
		return
	}
	for k, b := range c.Balancers {
		c.Balancers[k] = f.newest.NarrowBalancer(b)
	}
	for k, p := range c.MeshPorts {
		c.MeshPorts[k] = f.newest.NarrowMeshPort(p)
	}
	for id, z := range c.Zones {
		if n := f.newest.Zones[id]; n != nil {
			c.Zones[id] = z.Narrowed(n)
		} else {
			c.Zones[id] = z.Narrowed(&network.Zone{})
		}
	}
}

// PortKeyOf is where a port of the mesh is held.
func PortKeyOf(k network.MeshKey) network.PortKey {
	return network.PortKey{Protocol: k.Protocol, Host: netip.AddrPortFrom(netip.IPv4Unspecified(), k.Port)}
}

// meshHas reports whether a port of the mesh that is there is in the way of one
// of a container. Callers hold mu.
func (f *Fake) meshHas(k network.PortKey) bool {
	return k.Host.Addr().IsUnspecified() && f.there.MeshPorts[network.MeshKey{Protocol: k.Protocol, Port: k.Host.Port()}] != nil
}

// Watch implements network.Dataplane.
func (f *Fake) Watch(ctx context.Context, changed func()) error {
	alarm := make(chan struct{}, 1)
	f.mu.Lock()
	f.alarms[alarm] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.alarms, alarm)
	}()
	for {
		select {
		case <-alarm:
			changed()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Host implements network.Dataplane.
func (f *Fake) Host(context.Context) (*network.Host, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.host
	h.Devices = map[string]network.Device{}
	maps.Copy(h.Devices, f.host.Devices)
	for name, b := range f.there.Bridges {
		h.Devices[name] = network.Device{Bridge: true, Own: !b.External, Addresses: b.Addresses}
	}
	return &h, nil
}

// Counters implements network.Dataplane: an interface has received a byte for
// each letter of its name.
func (f *Fake) Counters(_ context.Context, sandbox string) ([]network.Counters, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.there.Sandboxes[sandbox]
	if s == nil {
		return nil, api.Errorf(api.NotFound, "no network namespace for %s", sandbox)
	}
	var l []network.Counters
	for _, i := range s.Interfaces {
		l = append(l, network.Counters{Interface: i.Name, RxBytes: uint64(len(i.Name))})
	}
	return l, nil
}

// Path implements network.Dataplane.
func (f *Fake) Path(sandbox string) string { return filepath.Join("/fake/netns", sandbox) }

// There returns what is there.
func (f *Fake) There() *network.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.there.Clone()
}

// Sets returns how often Set was called.
func (f *Fake) Sets() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sets
}

// Made returns how often a sandbox was made.
func (f *Fake) Made(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.made[id]
}

// Occupy gives a port to another process of the host.
func (f *Fake) Occupy(k network.PortKey) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy[k] = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.busy, k)
	}
}

// Fail has everything that concerns the item fail; nil ends that.
func (f *Fake) Fail(it network.Item, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing[it] = err
}

// SetHost changes what Host says, but for the data plane's own devices.
func (f *Fake) SetHost(h network.Host) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.host = h
}

// Damage removes a bridge behind the data plane's back.
func (f *Fake) Damage(device string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.there = f.there.Clone()
	delete(f.there.Bridges, device)
	for a := range f.alarms {
		select {
		case a <- struct{}{}:
		default:
		}
	}
}
