package network

import (
	"context"
	"net/netip"
	"slices"
	"time"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

const (
	// attachTimeout bounds how long a container waits for its place, detachTimeout
	// how long one that ends waits until the managers know.
	attachTimeout = 15 * time.Second
	detachTimeout = 2 * time.Second
	// placesEvery is how often a node with places asks whether managers know of the
	// same; retryPlaces how long it waits after a failure.
	placesEvery = 5 * time.Minute
	retryPlaces = 5 * time.Second
)

// places is what is known of this node's places in networks of the swarm, besides
// what endpoints have. Guarded by Networks.mu.
type places struct {
	swarm Swarm
	// expected is closed when swarm is set; nil: nobody will, or it is.
	expected chan struct{}
	// given counts who is about to join with addresses of its own, by container;
	// busy, who is getting places.
	given, busy map[string]int
	// granted are places that are about to be taken up.
	granted map[grantKey]*Grant
	// leaving are places to be given back, by id.
	leaving map[string]*Grant
	// check: it is to be seen whether managers know of the same places.
	check bool

	kicked chan struct{}
}

func newPlaces() places {
	return places{
		given: map[string]int{}, busy: map[string]int{}, granted: map[grantKey]*Grant{}, leaving: map[string]*Grant{},
		kicked: make(chan struct{}, 1),
	}
}

func (p *places) kick() {
	select {
	case p.kicked <- struct{}{}:
	default:
	}
}

// grantsOf are the places that endpoints have. Callers hold mu.
func (n *Networks) grantsOf(container string, l []endpoint) []*Grant {
	var all []*Grant
	for _, e := range l {
		if e.Grant == "" {
			continue
		}
		g := &Grant{ID: e.Grant, Container: container, Network: &api.Network{}}
		g.Network.ID = e.NetworkID
		if w := n.nets[e.NetworkID]; w != nil && w.Overlay != nil {
			g.Network = w.Overlay.network(w.record)
		}
		s := e.Settings
		for _, p := range []struct {
			a    netip.Addr
			bits int
		}{{s.IPAddress, s.IPPrefixLen}, {s.GlobalIPv6Address, s.GlobalIPv6PrefixLen}} {
			if p.a.IsValid() {
				g.Addresses = append(g.Addresses, netip.PrefixFrom(p.a, p.bits))
			}
		}
		all = append(all, g)
	}
	return all
}

// hasPlaces reports whether a container has a place in a network of the swarm.
// Callers hold mu.
func (n *Networks) hasPlaces() bool {
	for _, b := range n.boxes {
		if slices.ContainsFunc(b.Endpoints, func(e endpoint) bool { return e.Grant != "" }) {
			return true
		}
	}
	return false
}

// giveBack gives places back: at once if a manager answers, else later.
func (n *Networks) giveBack(ctx context.Context, grants []*Grant) {
	if len(grants) == 0 {
		return
	}
	ids := make([]string, 0, len(grants))
	n.mu.Lock()
	for _, g := range grants {
		n.places.leaving[g.ID] = g
		ids = append(ids, g.ID)
	}
	s := n.places.swarm
	n.mu.Unlock()
	if s == nil {
		return
	}
	if err := n.detach(context.WithoutCancel(ctx), s, ids); err != nil {
		n.log.Info("network: managers will be told later that a container has left a network of the swarm", "container", grants[0].Container, "error", err)
		n.places.kick()
	}
}

func (n *Networks) detach(ctx context.Context, s Swarm, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	if err := s.Detach(ctx, ids); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		delete(n.places.leaving, id)
	}
	return nil
}

// keptPlace returns a place that the container has left and that managers may not
// know of yet.
func (n *Networks) keptPlace(r AttachRequest) *Grant {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.places.leaving {
		if g.Network.DriverState.Name != "" && g.Container == r.Container && (g.Network.ID == r.Network || g.Network.Spec.Name == r.Network) &&
			!slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool {
				return !slices.ContainsFunc(g.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
			}) {
			return g
		}
	}
	return nil
}

// takeUp takes a place back that was to be given back; false if it is gone.
func (n *Networks) takeUp(g *Grant) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, there := n.places.leaving[g.ID]
	delete(n.places.leaving, g.ID)
	return there
}

// runPlaces has managers and this node know of the same places, until ctx ends.
func (n *Networks) runPlaces(ctx context.Context) {
	t := time.NewTimer(placesEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.places.kicked:
		case <-t.C:
			n.mu.Lock()
			n.places.check = n.places.check || n.hasPlaces()
			n.mu.Unlock()
		}
		wait := placesEvery
		if err := n.agree(ctx); err != nil && ctx.Err() == nil {
			n.log.Debug("network: managers could not be asked which containers are in networks of the swarm; will try again", "error", err)
			wait = retryPlaces
		}
		t.Reset(wait)
	}
}

// agree gives back what is to be given back, and what managers say that this node
// has and it has not; what only the node knows of it asks for again.
func (n *Networks) agree(ctx context.Context) error {
	n.mu.Lock()
	s, check := n.places.swarm, n.places.check
	mine := map[string]*Grant{}
	for id, b := range n.boxes {
		for _, g := range n.grantsOf(id, b.Endpoints) {
			mine[g.ID] = g
		}
	}
	leaving := n.leavingIDs()
	n.mu.Unlock()
	if s == nil {
		return nil
	}
	if !check || len(leaving) > 0 {
		if len(leaving) == 0 {
			return nil
		}
		if err := n.detach(ctx, s, leaving); err != nil || !check {
			return err
		}
	}
	limited, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	theirs, err := s.Attached(limited)
	if err != nil {
		return err
	}
	for i := range theirs {
		delete(mine, theirs[i].ID)
	}
	if stale := n.strangers(theirs); len(stale) > 0 {
		if err := n.detach(ctx, s, stale); err != nil {
			return err
		}
	}
	for _, g := range mine {
		if err := n.askAgain(ctx, s, g); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.places.swarm == s {
		n.places.check = false
	}
	return nil
}

func (n *Networks) leavingIDs() []string {
	var ids []string
	for id := range n.places.leaving {
		ids = append(ids, id)
	}
	return ids
}

// strangers are the places that managers know of and no container here has.
func (n *Networks) strangers(theirs []Grant) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for _, g := range theirs {
		if n.places.busy[g.Container] > 0 {
			continue // it may be what it is getting now
		}
		b := n.boxes[g.Container]
		if b == nil || !slices.ContainsFunc(b.Endpoints, func(e endpoint) bool { return e.Grant == g.ID }) {
			ids = append(ids, g.ID)
		}
	}
	return ids
}

// askAgain gets a container its place again that managers do not know any more, as
// after the node was given up: with the same addresses, or it has none.
func (n *Networks) askAgain(ctx context.Context, s Swarm, lost *Grant) error {
	r := AttachRequest{Network: lost.Network.ID, Container: lost.Container}
	for _, p := range lost.Addresses {
		r.Addresses = append(r.Addresses, p.Addr())
	}
	n.mu.Lock()
	if e := n.endpointOf(lost); e != nil {
		r.Names = slices.Clone(e.Settings.DNSNames)
	} else {
		n.mu.Unlock()
		return nil // it has left meanwhile
	}
	n.places.busy[lost.Container]++
	n.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	g, err := s.Attach(limited, r)
	defer func() {
		var got []*Grant
		if err == nil {
			got = append(got, g)
		}
		n.settleGrants(ctx, lost.Container, got)
	}()
	switch {
	case err == nil:
		return n.replaceGrant(lost, g)
	case api.Is(err, api.Unavailable) || limited.Err() != nil:
		return err
	}
	n.log.Error("network: a container's place in a network of the swarm is lost: it was given up while the node was away; the container is taken out of the network",
		"container", lost.Container, "network", lost.Network.Spec.Name, "addresses", lost.Addresses, "error", err)
	return n.Disconnect(ctx, lost.Container, lost.Network.ID, true)
}

// endpointOf returns the endpoint that has a grant; nil: none has. Callers hold mu.
func (n *Networks) endpointOf(g *Grant) *endpoint {
	if b := n.boxes[g.Container]; b != nil {
		if i := slices.IndexFunc(b.Endpoints, func(e endpoint) bool { return e.Grant == g.ID }); i >= 0 {
			return &b.Endpoints[i]
		}
	}
	return nil
}

func (n *Networks) replaceGrant(old, now *Grant) error {
	n.mu.Lock()
	if n.endpointOf(old) == nil {
		n.mu.Unlock()
		return nil
	}
	b := n.boxes[old.Container]
	a := *b.attachment
	a.Endpoints = slices.Clone(a.Endpoints)
	for i := range a.Endpoints {
		if a.Endpoints[i].Grant == old.ID {
			a.Endpoints[i].Grant = now.ID
		}
	}
	n.install(&a)
	w := n.files.want(n.o.RuntimeDir, a.ID, &a)
	n.mu.Unlock()
	n.writeFiles(w)
	return w.err
}

// network is an overlay as the swarm has it, from what is kept of it here.
func (o *overlay) network(r *record) *api.Network {
	if o.Swarm != nil {
		return o.Swarm
	}
	w := &api.Network{}
	w.ID, w.Spec.Name = r.Network.ID, r.Network.Name
	return w
}

// granted fills in the addresses of a grant. MAC addresses in overlays follow from
// them, on all nodes.
func (w *netw) granted(s *dnet.EndpointSettings, g *Grant) error {
	if len(s.MacAddress) != 0 {
		return api.Errorf(api.Invalid, "network %s: mac-address %s: in an overlay, MAC addresses follow from IP addresses, on all nodes; none can be asked for", w.Network.Name, s.MacAddress)
	}
	for _, p := range g.Addresses {
		if p.Addr().Is4() {
			s.IPAddress, s.IPPrefixLen = p.Addr(), p.Bits()
		} else {
			s.GlobalIPv6Address, s.GlobalIPv6PrefixLen = p.Addr(), p.Bits()
		}
	}
	return nil
}
