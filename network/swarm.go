package network

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

const (
	driverOverlay = "overlay"
	scopeLocal    = "local"
	scopeSwarm    = "swarm"
	// gatewayName is the network by which containers in overlays reach what is
	// outside of them. Users may make it themselves, with options of their own.
	gatewayName = "docker_gwbridge"
	// overlaysDir is where the overlays that containers are in are kept, below
	// Options.RuntimeDir.
	overlaysDir = "overlays"
)

// overlay is what an overlay network has besides what the API shows.
type overlay struct {
	VNI uint32
	MTU int `json:",omitempty"` // bytes; 0: as large as the host's network allows
	// Fits is how large that is, since the node is in the network.
	Fits int `json:",omitempty"`
	// Encrypted overlays send nothing in the clear.
	Encrypted bool `json:",omitempty"`
	// Swarm is the network as managers told it, as long as the daemon runs.
	Swarm *api.Network `json:"-"`
}

// overlayRecord is what the managers said of a network, as a record.
func overlayRecord(o *api.Network) (*record, error) {
	r := &record{Network: dnet.Network{
		Name: o.Spec.Name, ID: o.ID, Created: o.CreatedAt, Scope: scopeSwarm, Driver: driverOverlay, EnableIPv4: true,
		EnableIPv6: o.Spec.IPv6Enabled, Internal: o.Spec.Internal, Attachable: o.Spec.Attachable, Ingress: o.Spec.Ingress,
		Options: orEmpty(o.DriverState.Options), Labels: orEmpty(o.Spec.Labels),
		IPAM: dnet.IPAM{Driver: ipamDefault, Options: map[string]string{}, Config: []dnet.IPAMConfig{}},
	}, Overlay: &overlay{VNI: o.VNI(), Swarm: o, Encrypted: o.Encrypted()}}
	switch {
	case !validContainerID(o.ID):
		return nil, api.Errorf(api.Invalid, "network %s: id %q can't name a namespace", o.Spec.Name, o.ID)
	case o.DriverState.Name != driverOverlay:
		return nil, api.Errorf(api.Invalid, "network %s: driver %q of scope swarm is not served; only overlay is", o.Spec.Name, o.DriverState.Name)
	case r.Overlay.VNI == 0:
		return nil, api.Errorf(api.Invalid, "network %s has no VXLAN id: the managers have not allocated it", o.Spec.Name)
	}
	if v := r.Network.Options[optMTU]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n != 0 && (n < minMTU || n > maxMTU) {
			return nil, api.Errorf(api.Invalid, "network %s: option %s=%q: must be a number of bytes from %d to %d", o.Spec.Name, optMTU, v, minMTU, maxMTU)
		}
		r.Overlay.MTU = n
	}
	if o.IPAMOptions != nil {
		for _, c := range o.IPAMOptions.Configs {
			r.Network.IPAM.Config = append(r.Network.IPAM.Config, dnet.IPAMConfig{Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway})
		}
	}
	return r, nil
}

// Use makes networks of the swarm known, so that containers can join them by id,
// and keeps them until release is called; then they are kept as long as a
// container is in one. Networks that every node has by itself are left alone.
func (n *Networks) Use(networks []*api.Network) (release func(), err error) {
	var ids []string
	release = func() {
		n.mu.Lock()
		n.unhold(ids...)
		ids = nil
		n.mu.Unlock()
		n.writeFiles()
	}
	if err := n.checkRoutes(networks); err != nil {
		return nil, err
	}
	for _, o := range networks {
		if o.Predefined {
			continue
		}
		if err := n.hold(o); err != nil {
			release()
			return nil, err
		}
		ids = append(ids, o.ID)
	}
	return release, nil
}

func (n *Networks) hold(o *api.Network) error {
	var host *Host
	if ownOfNodes(o) {
		ctx, cancel := context.WithTimeout(context.Background(), n.o.SetTimeout)
		defer cancel()
		var err error
		if host, err = n.plane.Host(ctx); err != nil {
			return api.Errorf(api.Unavailable, "network %s: look at the host's network: %w", o.Spec.Name, err)
		}
	}
	n.mu.Lock()
	w, err := n.holdEither(o, host)
	n.mu.Unlock()
	if err != nil {
		return err
	}
	n.writeFiles(w)
	if w == nil || w.err == nil {
		return nil
	}
	err = api.Errorf(api.Internal, "network %s: write it to %s: %w", o.Spec.Name, n.overlaysDir(), w.err)
	n.mu.Lock()
	n.unhold(o.ID)
	n.mu.Unlock()
	n.writeFiles()
	return err
}

// unhold counts one less who needs networks. Callers hold mu, and write the files
// then.
func (n *Networks) unhold(ids ...string) {
	for _, id := range ids {
		if w := n.nets[id]; w != nil {
			w.holds--
		}
	}
	n.forgetOverlays()
}

func (n *Networks) holdEither(o *api.Network, host *Host) (*wish, error) {
	if host != nil {
		return n.holdLocal(o, host)
	}
	return n.holdLocked(o)
}

// holdLocked makes an overlay known and counts one more who needs it. It returns the
// file that is to be written, if there is none. Callers hold mu.
func (n *Networks) holdLocked(o *api.Network) (w *wish, err error) {
	r, err := overlayRecord(o)
	if err != nil {
		return nil, err
	}
	if n.closed {
		return nil, errClosed
	}
	if n.nets[o.ID] == nil {
		if len(n.nets)+len(n.creating) >= maxNetworks {
			return nil, api.Errorf(api.ResourceExhausted, "this node has %d networks, the most it may have", len(n.nets))
		}
		r.Overlay.Fits = n.fits(r.Overlay.Encrypted)
		if mtu := cmp.Or(r.Overlay.MTU, r.Overlay.Fits); r.Network.EnableIPv6 && mtu < minMTU6 {
			return nil, api.Errorf(api.Invalid, "network %s: IPv6 needs an MTU of %d bytes, and this node's tunnels take %d: make the network without IPv6 (--ipv6), or have the node's own network take more", o.Spec.Name, minMTU6, mtu)
		}
		n.addOverlay(r)
		w = n.files.want(n.overlaysDir(), o.ID, r)
	}
	n.nets[o.ID].holds++
	return w, nil
}

func (n *Networks) overlaysDir() string { return filepath.Join(n.o.RuntimeDir, overlaysDir) }

// addOverlay makes a record's overlay known. Callers hold mu or are New.
func (n *Networks) addOverlay(r *record) {
	n.nets[r.Network.ID] = &netw{
		record: r, users: map[string]struct{}{}, settings: settings{ifPrefix: "eth", mtu: r.Overlay.MTU},
	}
}

// loadOverlays reads the overlays that containers were in.
func (n *Networks) loadOverlays() error {
	records, err := loadAll(n.overlaysDir(), func(r *record) string { return r.Network.ID }, func(path string, err error) {
		n.log.Error("network: a stored overlay can't be read; its containers will be without it until they are replaced", "file", path, "error", err)
	})
	for _, r := range records {
		if r.Overlay != nil {
			n.addOverlay(r)
		} else if err := n.add(r); err != nil {
			n.log.Error("network: a stored network of the swarm is not valid; its containers will be without it until they are replaced", "network", r.Network.Name, "error", err)
		}
	}
	return err
}

// forgetOverlays forgets those that nobody needs. Callers hold mu, and write the files
// then.
func (n *Networks) forgetOverlays() {
	for id, w := range n.nets {
		if !w.ofSwarm() || w.holds > 0 || len(w.users) > 0 {
			continue
		}
		delete(n.nets, id)
		n.files.want(n.overlaysDir(), id, nil)
	}
}

// beyond returns the subnets of an overlay, of the addresses' families, that none of
// the addresses is in: they are on the same link.
func (w *netw) beyond(addrs []netip.Prefix) []netip.Prefix {
	var l []netip.Prefix
	for _, c := range w.Network.IPAM.Config {
		if !c.Subnet.IsValid() {
			continue
		}
		family := func(a netip.Prefix) bool { return a.Addr().Is4() == c.Subnet.Addr().Is4() }
		if slices.ContainsFunc(addrs, family) && !slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return c.Subnet.Contains(a.Addr()) }) {
			l = append(l, c.Subnet.Masked())
		}
	}
	return l
}

func (n *Networks) overlayMTU(w *netw) int {
	if w.mtu != 0 {
		return w.mtu
	}
	if w.Overlay.Fits != 0 {
		return w.Overlay.Fits
	}
	return n.fits(w.Overlay.Encrypted)
}

// Overlays returns the ids of the overlays that containers here are in, sorted,
// and a channel that is closed when there may be others.
func (n *Networks) Overlays() ([]string, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for id, w := range n.nets {
		if w.Overlay != nil && len(w.users) > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, n.overlaysChanged
}

// noteOverlays tells who waits for Overlays to change. Callers hold mu.
func (n *Networks) noteOverlays() {
	close(n.overlaysChanged)
	n.overlaysChanged = make(chan struct{})
}

// kick has Run set the data plane soon.
func (n *Networks) kick() {
	select {
	case n.kicked <- struct{}{}:
	default:
	}
}

// gatewayRequest is how the gateway network is made if no user has made it.
func gatewayRequest() *dnet.CreateRequest {
	return &dnet.CreateRequest{Name: gatewayName, Driver: "bridge", Options: map[string]string{optICC: "false", optMasquerade: "true"}}
}

// needsGateway reports whether a container that asks for these networks gets an
// interface in the gateway network, too, and that does not exist yet.
func (n *Networks) needsGateway(asked map[string]*dnet.EndpointSettings) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.gatewayNetwork() != nil {
		return false
	}
	for name := range maps.Keys(asked) {
		if w, err := n.lookup(name); err == nil && w.Overlay != nil && !w.Network.Internal {
			return true
		}
	}
	return false
}

// makeGateway returns once the gateway network exists: one container makes it,
// others that start at the same time wait.
func (n *Networks) makeGateway(ctx context.Context) error {
	select {
	case n.gatewayTurn <- struct{}{}:
		defer func() { <-n.gatewayTurn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	n.mu.Lock()
	there := n.gatewayNetwork() != nil
	n.mu.Unlock()
	if there {
		return nil
	}
	if _, err := n.Create(ctx, gatewayRequest()); err != nil && !api.Is(err, api.Exists) {
		return fmt.Errorf("network %s, which containers in overlays leave by: %w", gatewayName, err)
	}
	return nil
}

// offerGateway makes the gateway network of a node that has come into a swarm, where
// users and tools look for it beside the ingress network. It is done once: a user who
// removes it may make another.
func (n *Networks) offerGateway(ctx context.Context) {
	n.mu.Lock()
	wanted := n.gatewayWanted
	n.gatewayWanted = false
	n.mu.Unlock()
	if !wanted {
		return
	}
	if err := n.makeGateway(ctx); err != nil && ctx.Err() == nil {
		n.log.Warn("network: the gateway network could not be made; it will be when a container needs it", "error", err)
	}
}

func (n *Networks) gatewayNetwork() *netw {
	for _, w := range n.nets {
		if w.Network.Name == gatewayName && w.Device != "" {
			return w
		}
	}
	return nil
}

// addGateway adds the way out to the endpoints of a container that is in an
// overlay and has none otherwise. Callers hold mu.
func (n *Networks) addGateway(l []endpoint) ([]endpoint, error) {
	out := false
	for _, e := range l {
		w := n.nets[e.NetworkID]
		out = out || w.Overlay != nil && !w.Network.Internal
	}
	if v4, v6 := gatewayEndpoints(l); !out || v4 != nil || v6 != nil {
		return l, nil
	}
	w := n.gatewayNetwork()
	if w == nil {
		return l, api.Errorf(api.NotFound, "network %s, which containers in overlays leave by, is gone; it is made again when one starts", gatewayName)
	}
	e, err := n.newEndpoint("", w, nil)
	if err != nil {
		return l, err
	}
	e.Automatic = true
	return append(l, e), nil
}

// checkOverlap refuses endpoints whose subnets overlap: the container could not
// tell them apart. Callers hold mu.
func (n *Networks) checkOverlap(l []endpoint) error {
	for i := range l {
		for j := range i {
			a, b := n.nets[l[i].NetworkID], n.nets[l[j].NetworkID]
			for _, x := range a.Network.IPAM.Config {
				for _, y := range b.Network.IPAM.Config {
					if x.Subnet.IsValid() && y.Subnet.IsValid() && x.Subnet.Overlaps(y.Subnet) {
						return api.Errorf(api.Invalid, "subnet %s of network %s overlaps %s of network %s: a container can't be in both",
							x.Subnet, a.Network.Name, y.Subnet, b.Network.Name)
					}
				}
			}
		}
	}
	return nil
}
