package network

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// Swarm gives containers that users run on this node places in attachable networks
// of the swarm. Implementations are safe for concurrent use.
type Swarm interface {
	// Attach gives a container a place in a network; what it had there before is
	// given back. NotFound: there is no such network; PermissionDenied: it is not
	// attachable; Unavailable: no manager answers.
	Attach(ctx context.Context, r AttachRequest) (*Grant, error)
	// Detach gives places back, or says at once why not.
	Detach(ctx context.Context, ids []string) error
	// Attached returns the places that managers say this node's containers have,
	// without their networks. It waits for a manager.
	Attached(ctx context.Context) ([]Grant, error)
	// Withdrawn returns when managers say that no node sends new work to this node's
	// tasks that are to end. Unavailable: no manager answers.
	Withdrawn(ctx context.Context) error
}

// AttachRequest asks for a container's place in a network.
type AttachRequest struct {
	Network   string // name, id or the beginning of an id
	Container string // id
	// Names of the container in the network; the first is its own.
	Names []string
	// Addresses that are asked for, one a family at most.
	Addresses []netip.Addr
}

// Grant is a container's place in a network of the swarm, as managers gave it.
type Grant struct {
	ID        string // of the place; never used twice
	Container string
	Network   *api.Network
	Addresses []netip.Prefix
}

// grantKey names the place of a container in a network, by their ids.
type grantKey struct{ container, network string }

// SetSwarm says who gives places in the swarm's networks; nil: this node is part of
// no swarm, and there are none.
func (n *Networks) SetSwarm(s Swarm) {
	n.mu.Lock()
	n.places.swarm = s
	n.places.check = s != nil
	if n.places.expected != nil {
		close(n.places.expected)
		n.places.expected = nil
	}
	n.mu.Unlock()
	n.places.kick()
}

// ExpectSwarm says that this node is part of a swarm, and SetSwarm will be called:
// containers that restart before then wait for it.
func (n *Networks) ExpectSwarm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.places.swarm == nil && n.places.expected == nil {
		n.places.expected = make(chan struct{})
	}
}

// awaitSwarm waits for it, if one of the networks is not known here.
func (n *Networks) awaitSwarm(ctx context.Context, asked map[string]*dnet.EndpointSettings) error {
	n.mu.Lock()
	expected, unknown := n.places.expected, false
	for name := range asked {
		_, err := n.lookup(name)
		unknown = unknown || api.Is(err, api.NotFound)
	}
	n.mu.Unlock()
	if expected == nil || !unknown {
		return nil
	}
	select {
	case <-expected:
		return nil
	case <-time.After(attachTimeout):
		return nil // then it is not found
	case <-ctx.Done():
		return ctx.Err()
	}
}

// UseFor is Use for a container whose addresses in these networks are in what it
// asks for when it joins: a task's.
func (n *Networks) UseFor(container string, networks []*api.Network) (release func(), err error) {
	letGo, err := n.Use(networks)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.places.given[container]++
	return func() {
		n.mu.Lock()
		if n.places.given[container]--; n.places.given[container] == 0 {
			delete(n.places.given, container)
		}
		n.mu.Unlock()
		letGo()
	}, nil
}

// fromSwarm gets a container its places in those of the networks that are the
// swarm's, and returns what to ask of this node's, with those named by id. settle
// is to be called once it has joined, or failed to: places that it has not taken up
// are given back.
func (n *Networks) fromSwarm(ctx context.Context, id string, asked map[string]*dnet.EndpointSettings) (_ map[string]*dnet.EndpointSettings, settle func(), err error) {
	if err := n.awaitSwarm(ctx, asked); err != nil {
		return nil, nil, err
	}
	s, names := n.swarmsOwn(id, asked)
	if len(names) == 0 {
		return asked, func() {}, nil
	}
	asked = maps.Clone(asked)
	var got []*Grant
	var release []func()
	settle = func() {
		n.settleGrants(ctx, id, got)
		for _, f := range release {
			f()
		}
	}
	for _, name := range names {
		g, err := n.place(ctx, s, attachRequest(id, name, asked[name]))
		if err != nil {
			settle()
			return nil, nil, err
		}
		got = append(got, g)
		letGo, err := n.Use([]*api.Network{g.Network})
		if err != nil {
			settle()
			return nil, nil, err
		}
		release = append(release, letGo)
		e := asked[name]
		delete(asked, name)
		if _, twice := asked[g.Network.ID]; twice {
			settle()
			return nil, nil, api.Errorf(api.Invalid, "network %s is named twice", name)
		}
		asked[g.Network.ID] = e
		n.mu.Lock()
		n.places.granted[grantKey{id, g.Network.ID}] = g
		n.mu.Unlock()
	}
	return asked, settle, nil
}

func attachRequest(id, name string, e *dnet.EndpointSettings) AttachRequest {
	r := AttachRequest{Network: name, Container: id}
	if e == nil {
		return r
	}
	r.Names = slices.Clone(e.DNSNames)
	if c := e.IPAMConfig; c != nil {
		for _, a := range []netip.Addr{c.IPv4Address, c.IPv6Address} {
			if a.IsValid() {
				r.Addresses = append(r.Addresses, a)
			}
		}
	}
	return r
}

// swarmsOwn returns which of the networks are the swarm's, as far as the container
// has no place in them. It notes that the container is getting places.
func (n *Networks) swarmsOwn(id string, asked map[string]*dnet.EndpointSettings) (Swarm, []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.places.swarm
	if s == nil || n.closed || n.places.given[id] > 0 {
		return nil, nil
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		w, err := n.lookup(name)
		if api.Is(err, api.NotFound) || err == nil && w.ofSwarm() && !n.hasPlace(id, w) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		n.places.busy[id]++
	}
	return s, names
}

// hasPlace reports whether the container is in the network. Callers hold mu.
func (n *Networks) hasPlace(id string, w *netw) bool {
	_, in := w.users[id]
	return in
}

// place asks the managers. If none answers, a place that was not given back yet
// will do.
func (n *Networks) place(ctx context.Context, s Swarm, r AttachRequest) (*Grant, error) {
	old := n.keptPlace(r)
	limit := attachTimeout
	if old != nil {
		limit = detachTimeout
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	g, err := s.Attach(limited, r)
	switch {
	case err == nil:
		return g, nil
	case old != nil && (api.Is(err, api.Unavailable) || api.Is(err, api.DeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)) && n.takeUp(old):
		n.log.Warn("network: no manager answers; a container keeps the place in a network of the swarm that it had", "container", r.Container, "network", r.Network, "error", err)
		return old, nil
	case limited.Err() != nil && ctx.Err() == nil:
		return nil, api.Errorf(api.Unavailable, "network %s: no manager of the swarm gave the container a place in it within %v: %w", r.Network, limit, err)
	}
	return nil, err
}

// settleGrants ends what swarmsOwn began: grants that no endpoint has are given
// back.
func (n *Networks) settleGrants(ctx context.Context, id string, got []*Grant) {
	var unused []*Grant
	n.mu.Lock()
	if n.places.busy[id]--; n.places.busy[id] == 0 {
		delete(n.places.busy, id)
	}
	for _, g := range got {
		delete(n.places.granted, grantKey{id, g.Network.ID})
		used := false
		if b := n.boxes[id]; b != nil {
			used = slices.ContainsFunc(b.Endpoints, func(e endpoint) bool { return e.Grant == g.ID })
		}
		if !used {
			unused = append(unused, g)
		}
	}
	n.mu.Unlock()
	n.giveBack(ctx, unused)
}
