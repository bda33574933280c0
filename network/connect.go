package network

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// Connect puts a container that has joined in one more network.
func (n *Networks) Connect(ctx context.Context, id, name string, e *dnet.EndpointSettings) (*dnet.EndpointSettings, error) {
	own, settle, err := n.fromSwarm(ctx, id, map[string]*dnet.EndpointSettings{name: e})
	if err != nil {
		return nil, err
	}
	defer settle()
	name = slices.Collect(maps.Keys(own))[0] // a network of the swarm goes by its id now
	e = own[name]
	if n.needsGateway(own) && n.lacksWayOut(id) {
		if err := n.makeGateway(ctx); err != nil {
			return nil, err
		}
	}
	old, a, added, err := n.prepareConnect(id, name, e)
	if err != nil {
		return nil, err
	}
	if err := n.realize(ctx, a, true); err != nil {
		n.restore(context.WithoutCancel(ctx), old, newcomers(old, a))
		return nil, err
	}
	return added.Settings.Copy(), nil
}

func (n *Networks) prepareConnect(id, name string, asked *dnet.EndpointSettings) (old, a *attachment, added endpoint, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	b, w, err := n.boxAnd(id, name)
	if err != nil {
		return nil, nil, added, err
	}
	switch {
	case w.Network.Driver == "host" || b.sandbox == nil:
		return nil, nil, added, api.Errorf(api.Invalid, "container cannot be disconnected from host network or connected to host network; container %s stays as it is", id)
	case w.plain():
		return nil, nil, added, api.Errorf(api.Invalid, "container cannot be connected to multiple networks with one of the networks in private (none) mode; container %s stays as it is", id)
	case slices.ContainsFunc(b.Endpoints, func(e endpoint) bool { return e.NetworkID == w.Network.ID }):
		return nil, nil, added, api.Errorf(api.PermissionDenied, "endpoint with name %s already exists in network %s", id, w.Network.Name)
	case len(b.Endpoints) >= maxEndpoints:
		return nil, nil, added, api.Errorf(api.Invalid, "a container can't be in more than %d networks", maxEndpoints)
	}
	if added, err = n.newEndpoint(id, w, asked); err != nil {
		return nil, nil, added, err
	}
	// A container without a network is in "none" until it is given one.
	l := slices.DeleteFunc(slices.Clone(b.Endpoints), func(e endpoint) bool { return e.HostName == "" })
	if a, err = n.rearranged(b.attachment, append(l, added)); err != nil {
		w.releaseEndpoint(added.Settings)
		return nil, nil, added, err
	}
	i := slices.IndexFunc(a.Endpoints, func(e endpoint) bool { return e.NetworkID == w.Network.ID })
	n.install(a)
	return b.attachment, a, a.Endpoints[i], nil
}

// boxAnd finds a container and a network. Callers hold mu.
func (n *Networks) boxAnd(id, name string) (*box, *netw, error) {
	if n.closed {
		return nil, nil, errClosed
	}
	w, err := n.lookup(name)
	if err != nil {
		return nil, nil, err
	}
	b := n.boxes[id]
	if b == nil {
		return nil, nil, api.Errorf(api.NotFound, "container %s has no network: it isn't running", id)
	}
	return b, w, nil
}

// rearranged returns an attachment with other endpoints. Host ports stay; where
// they lead may change.
func (n *Networks) rearranged(old *attachment, endpoints []endpoint) (_ *attachment, err error) {
	a := *old
	if !slices.ContainsFunc(endpoints, func(e endpoint) bool { return n.nets[e.NetworkID].Overlay != nil }) {
		endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e endpoint) bool { return e.Automatic })
	}
	if a.Endpoints, err = n.addGateway(endpoints); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.release(a.Endpoints[len(endpoints):])
		}
	}()
	if err := n.checkOverlap(a.Endpoints); err != nil {
		return nil, err
	}
	a.Resolves = old.Resolves || n.needsResolver(a.Endpoints)
	n.sortEndpoints(a.Endpoints)
	if err := n.nameInterfaces(a.Endpoints); err != nil {
		return nil, err
	}
	a.Published, err = n.publish(a.ID, old.Asked, n.targetsOf(a.Endpoints), nil, old.Published)
	return &a, err
}

// lacksWayOut reports whether a container that has joined has no default route.
func (n *Networks) lacksWayOut(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.boxes[id]
	if b == nil {
		return false
	}
	v4, v6 := gatewayEndpoints(b.Endpoints)
	return v4 == nil && v6 == nil
}

// newcomers are the endpoints of is that was does not have.
func newcomers(was, is *attachment) []endpoint {
	return slices.DeleteFunc(slices.Clone(is.Endpoints), func(e endpoint) bool {
		return slices.ContainsFunc(was.Endpoints, func(o endpoint) bool { return o.HostName == e.HostName })
	})
}

// Published returns a container's ports as they are published now; nil: it has not
// joined.
func (n *Networks) Published(id string) dnet.PortMap {
	n.mu.Lock()
	defer n.mu.Unlock()
	if b := n.boxes[id]; b != nil {
		return b.portMap()
	}
	return nil
}

// portMap renders Published, with ports that were only exposed. Of open ports it says
// that they are, and of which family, as Docker does.
func (a *attachment) portMap() dnet.PortMap {
	m := dnet.PortMap{}
	for p, l := range a.Asked {
		if len(l) == 0 {
			m[p] = nil
		}
	}
	for _, p := range a.Published {
		k, _ := dnet.PortFrom(p.Target.Port(), dnet.IPProtocol(p.Protocol))
		b := dnet.PortBinding{HostIP: p.Host.Addr(), HostPort: strconv.Itoa(int(p.Host.Port()))}
		if p.Open {
			if b = (dnet.PortBinding{HostIP: netip.IPv4Unspecified()}); p.Host.Addr().Is6() {
				b.HostIP = netip.IPv6Unspecified()
			}
			if slices.Contains(m[k], b) {
				continue // in another network
			}
		}
		m[k] = append(m[k], b)
	}
	return m
}

// restore puts an attachment back in place of one that could not be made.
func (n *Networks) restore(ctx context.Context, old *attachment, failed []endpoint) {
	n.mu.Lock()
	if n.boxes[old.ID] != nil {
		n.install(old)
	}
	n.mu.Unlock()
	if err := n.realize(ctx, old, true); err != nil {
		n.log.Error("network: a container's network can't be put back as it was", "container", old.ID, "error", err)
	}
	n.mu.Lock()
	n.release(failed)
	n.mu.Unlock()
}

// Disconnect takes a container out of a network. With force, a container that
// isn't in it is no error.
func (n *Networks) Disconnect(ctx context.Context, id, name string, force bool) error {
	old, a, err := n.prepareDisconnect(id, name)
	if err != nil {
		if force && api.Is(err, api.NotFound) {
			return nil
		}
		return err
	}
	err = n.realize(ctx, a, true)
	n.mu.Lock()
	removed := newcomers(a, old)
	n.release(removed)
	grants := n.grantsOf(id, removed)
	n.forgetOverlays()
	n.mu.Unlock()
	n.writeFiles()
	n.giveBack(ctx, grants)
	if err != nil {
		return fmt.Errorf("disconnect from network %s: %w", name, err)
	}
	return nil
}

func (n *Networks) prepareDisconnect(id, name string) (old, a *attachment, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	b, w, err := n.boxAnd(id, name)
	if err != nil {
		return nil, nil, err
	}
	// Of several of the swarm's with that name, it is the one that it is in.
	i := slices.IndexFunc(b.Endpoints, func(e endpoint) bool { return e.NetworkID == w.Network.ID })
	if i < 0 && w.ofSwarm() {
		i = slices.IndexFunc(b.Endpoints, func(e endpoint) bool { return n.nets[e.NetworkID].Network.Name == name })
	}
	if i < 0 || b.Endpoints[i].Automatic {
		return nil, nil, api.Errorf(api.NotFound, "container %s is not connected to the network %s", id, w.Network.Name)
	}
	if w.Network.Driver == "host" {
		return nil, nil, api.Errorf(api.Conflict, "container cannot be disconnected from host network or connected to host network")
	}
	if a, err = n.rearranged(b.attachment, slices.Delete(slices.Clone(b.Endpoints), i, i+1)); err != nil {
		return nil, nil, err
	}
	n.install(a)
	return b.attachment, a, nil
}
