package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// Networks owns the node-local networks and the containers' places in them.
// All methods are safe for concurrent use. Changes that are asked for while
// the data plane is busy are made together by its next Set, so that many
// containers start at once in about the time of one.
type Networks struct {
	o     Options
	log   *slog.Logger
	plane Dataplane
	set   setter

	files files // of RuntimeDir

	// mu guards all below; it is never held while the data plane works or a file is
	// written: see files.
	mu     sync.Mutex
	nets   map[string]*netw
	boxes  map[string]*box
	ports  map[PortKey]string // who has it, by container id
	next   uint16             // next host port to try where any will do
	mtu    int                // default of bridges
	local  netip.Addr         // of the node, for others; may be zero
	mtus   map[netip.Addr]int // by the host's addresses
	ipv6   bool               // the host has IPv6
	closed bool
	// creating has the networks that are being written, by name.
	creating map[string]*record
	// What managers have said: of networks, by id; of this node, and how much it is
	// all together.
	told        map[string]*told
	heard       int
	underlay    Underlay
	keys        Keys
	mesh        meshState
	nodeUnsaved bool
	tasks       map[string]*task // by container id

	overlaysChanged chan struct{} // closed and replaced
	// hostServers are those that the host asks, dns those that containers want, by
	// container.
	hostServers []netip.Addr
	dns         map[string][]netip.Addr

	places places // in networks of the swarm

	kicked      chan struct{}
	gatewayTurn chan struct{} // held by who makes the gateway network
	// gatewayWanted says that this node has come into a swarm and has not yet seen to
	// its gateway network. Guarded by mu.
	gatewayWanted bool
}

// netw is a network. The record is replaced, never changed.
type netw struct {
	*record
	settings
	v4, v6 pools
	users  map[string]struct{}
	holds  int   // of an overlay, see Use
	zone   *Zone // of a network of the node's own; nil: to be made anew
	// services is what follows for an overlay; nil: it is to be made anew.
	services *services
}

// box is a container. Guarded by Networks.mu; what it points to is immutable.
type box struct {
	*attachment
	sandbox *Sandbox // nil with host networking
}

// New reads what is known of networks and containers, and decides on the
// default bridge. It changes nothing in the kernel: call Keep once what
// containers exist is known, then Run.
func New(ctx context.Context, o Options) (*Networks, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	n := &Networks{
		o: o, log: o.Log, plane: o.Dataplane, next: firstDynamicPort, creating: map[string]*record{},
		told: map[string]*told{}, overlaysChanged: make(chan struct{}), places: newPlaces(), kicked: make(chan struct{}, 1), gatewayTurn: make(chan struct{}, 1),
		nets: map[string]*netw{}, boxes: map[string]*box{}, ports: map[PortKey]string{},
	}
	n.set.plane, n.set.timeout, n.set.log = o.Dataplane, o.SetTimeout, o.Log
	for _, dir := range []string{o.Dir, o.RuntimeDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
	}
	host, err := o.Dataplane.Host(ctx)
	if err != nil {
		return nil, fmt.Errorf("network: look at the host's network: %w", err)
	}
	n.ipv6 = host.IPv6
	n.noteMTUs(host)
	if n.mtu = o.MTU; n.mtu == 0 {
		if n.mtu = host.MTU; n.mtu == 0 {
			n.mtu = defaultMTU
		}
	}
	n.readHost()
	if err := n.load(); err != nil {
		return nil, err
	}
	for _, load := range []func() error{n.loadOverlays, n.loadTold, n.loadTasks} {
		if err := load(); err != nil {
			return nil, err
		}
	}
	if err := n.predefine(host); err != nil {
		return nil, err
	}
	if err := n.adopt(); err != nil {
		return nil, err
	}
	if r, ok := n.plane.(Resumer); ok {
		r.Resume(n.config())
	}
	return n, nil
}

// load reads the networks.
func (n *Networks) load() error {
	records, err := loadAll(n.o.Dir, func(r *record) string { return r.Network.ID }, func(path string, err error) {
		n.log.Error("network: a stored network can't be read and is left out; remove the file or restore it", "file", path, "error", err)
	})
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := n.add(r); err != nil {
			n.log.Error("network: a stored network is not valid and is left out", "network", r.Network.Name, "id", r.Network.ID, "error", err)
		}
	}
	return nil
}

// add makes a record's network known. Callers hold mu or are New.
func (n *Networks) add(r *record) error {
	w := &netw{record: r, users: map[string]struct{}{}}
	var err error
	switch {
	case r.Network.ConfigOnly:
		n.nets[r.Network.ID] = w
		return nil
	case r.Macvlan != nil:
		own := maps.Clone(r.Network.Options)
		maps.DeleteFunc(own, func(k, _ string) bool { return k != optMTU && k != optIfPrefix })
		w.settings, err = parseSettings(own)
	default:
		w.settings, err = parseSettings(r.Network.Options)
	}
	if err != nil {
		return err
	}
	for _, c := range r.Network.IPAM.Config {
		if !c.Subnet.IsValid() {
			return api.Errorf(api.Invalid, "network %s: a subnet is missing", r.Network.Name)
		}
		p := newPool(r.Network.Name, c.Subnet, c.IPRange)
		if c.Gateway.IsValid() {
			if err := p.claim(c.Gateway); err != nil {
				return err
			}
		}
		for _, a := range c.AuxAddress {
			if err := p.claim(a); err != nil {
				return err
			}
		}
		if c.Subnet.Addr().Is4() {
			w.v4 = append(w.v4, p)
		} else {
			w.v6 = append(w.v6, p)
		}
	}
	n.nets[r.Network.ID] = w
	return nil
}

// adopt takes over the containers that an earlier daemon had attached.
func (n *Networks) adopt() error {
	known, err := loadAll(n.o.RuntimeDir, func(a *attachment) string { return a.ID }, func(path string, err error) {
		n.log.Error("network: what was attached can't be read; the container will be without network until it is started anew", "file", path, "error", err)
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		a := n.readmit(known[id])
		n.install(a)
	}
	for _, w := range n.nets {
		for _, p := range slices.Concat(w.v4, w.v6) {
			p.resume()
		}
	}
	n.forgetOverlays()
	n.writeFiles()
	return nil
}

// readmit claims what an attachment had. Endpoints in networks that are gone,
// or whose address is not to be had, are left out.
func (n *Networks) readmit(a *attachment) *attachment {
	b := *a
	b.Endpoints = nil
	for _, e := range a.Endpoints {
		w := n.nets[e.NetworkID]
		if w == nil {
			n.log.Warn("network: a container's network is gone; its interface is removed", "container", a.ID, "network", e.NetworkID)
			continue
		}
		if err := w.claimEndpoint(e.Settings); err != nil {
			n.log.Warn("network: a container's address is no longer its own; its interface is removed", "container", a.ID, "error", err)
			continue
		}
		b.Endpoints = append(b.Endpoints, e)
	}
	return &b
}

// install makes an attachment the container's, in place of what it had.
// Callers hold mu or are New.
func (n *Networks) install(a *attachment) {
	if old := n.boxes[a.ID]; old != nil {
		n.uninstall(old)
	}
	for _, e := range a.Endpoints {
		w := n.nets[e.NetworkID]
		w.users[a.ID] = struct{}{}
		w.services = nil
		w.zone = nil
		if w.Overlay != nil && len(w.users) == 1 {
			n.noteOverlays()
		}
	}
	for _, p := range a.Published {
		if !p.Open {
			n.ports[p.PortKey] = a.ID
		}
	}
	n.boxes[a.ID] = &box{attachment: a, sandbox: n.sandboxOf(a)}
}

// uninstall undoes install; addresses stay claimed.
func (n *Networks) uninstall(b *box) {
	for _, e := range b.Endpoints {
		if w := n.nets[e.NetworkID]; w != nil {
			delete(w.users, b.ID)
			w.services = nil
			w.zone = nil
			if w.Overlay != nil && len(w.users) == 0 {
				n.noteOverlays()
			}
		}
	}
	for _, p := range b.Published {
		if n.ports[p.PortKey] == b.ID {
			delete(n.ports, p.PortKey)
		}
	}
	delete(n.boxes, b.ID)
}

// config returns what the data plane should be now.
func (n *Networks) config() *Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &Config{
		Rules4: !n.o.NoRules4, Rules6: !n.o.NoRules6 && n.ipv6, Forward: !n.o.NoForward, UserProxy: !n.o.NoUserProxy,
		Underlay:  n.underlay,
		Overlays:  map[string]*Overlay{},
		Bridges:   make(map[string]*Bridge, len(n.nets)),
		Sandboxes: make(map[string]*Sandbox, len(n.boxes)),
		Ports:     make(map[PortKey]*Port, len(n.ports)),
		Zones:     map[string]*Zone{},
		Balancers: map[BalancerKey]*Balancer{},
		MeshPorts: map[MeshKey]*MeshPort{},
	}
	n.configServices(c)
	n.putLocalZones(c)
	for _, w := range n.nets {
		if b := n.bridgeOf(w); b != nil {
			c.Bridges[b.Device] = b
		}
	}
	for id, b := range n.boxes {
		if b.sandbox != nil {
			c.Sandboxes[id] = b.sandbox
		}
		for i := range b.Published {
			c.Ports[b.Published[i].PortKey] = &b.Published[i]
		}
	}
	return c
}

// bridgeOf returns the bridge of a network; nil if it has none.
func (n *Networks) bridgeOf(w *netw) *Bridge {
	if w.Device == "" {
		return nil
	}
	b := &Bridge{
		Device: w.Device, MTU: w.mtuOr(n.mtu), Masquerade: w.masquerade, Internal: w.Network.Internal,
		Isolated: w.isolated, External: w.External,
		Mode4: w.mode4.ofBridge(), Mode6: w.mode6.ofBridge(), Trusted: w.trusted, TrustAll: n.o.DirectRouting, Source4: w.source4, Source6: w.source6,
	}
	for _, c := range w.Network.IPAM.Config {
		switch {
		case w.bare(c.Subnet.Addr().Is6()):
			b.Bare = append(b.Bare, c.Subnet)
		case c.Gateway.IsValid():
			b.Addresses = append(b.Addresses, netip.PrefixFrom(c.Gateway, c.Subnet.Bits()))
		}
	}
	return b
}

func (s settings) mtuOr(d int) int {
	if s.mtu != 0 {
		return s.mtu
	}
	return d
}

// lookup finds a network by id, name or unambiguous id prefix. Callers hold mu.
func (n *Networks) lookup(name string) (*netw, error) {
	if name == dnet.NetworkDefault {
		name = dnet.NetworkBridge
	}
	if w := n.nets[name]; w != nil {
		return w, nil
	}
	var found *netw
	for _, w := range n.nets {
		if w.Network.Name == name {
			return w, nil
		}
	}
	for id, w := range n.nets {
		if name != "" && strings.HasPrefix(id, name) {
			if found != nil {
				return nil, api.Errorf(api.Invalid, "network %s is ambiguous: more than one id begins with it; give more of the id, or the name", name)
			}
			found = w
		}
	}
	if found == nil {
		return nil, api.Errorf(api.NotFound, "network %s not found", name)
	}
	return found, nil
}

var errClosed = errors.New("network: closed")
