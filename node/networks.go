package node

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/events"
	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/network"
)

// engineNetworks gives the engine its Networks from package network: the two
// don't know each other.
type engineNetworks struct{ *network.Networks }

var _ engine.Networks = engineNetworks{}

func (n engineNetworks) Join(ctx context.Context, id string, endpoints map[string]*dnet.EndpointSettings, ports dnet.PortMap) (*engine.Sandbox, error) {
	j, err := n.Networks.Join(ctx, id, endpoints, ports)
	if err != nil {
		return nil, err
	}
	return &engine.Sandbox{Path: j.Path, Endpoints: j.Endpoints, Ports: j.Ports, DNS: j.DNS, HostGateway: j.HostGateway}, nil
}

// Scopes of networks, as Docker names them.
const (
	scopeLocal = "local"
	scopeSwarm = "swarm"

	driverOverlay = "overlay"
)

// networks serves the API's networks: this node's own, and on a manager those
// of the swarm, which come second where both have a name.
type networks struct {
	local *network.Networks
	// swarm returns nil and why, unless this node is a manager.
	swarm func() (swarmNetworks, error)
	// containers connects running containers.
	containers containerNetworks
}

// containerNetworks is the engine, for running containers' networks.
type containerNetworks interface {
	NetworkConnect(ctx context.Context, net, container string, e *dnet.EndpointSettings) error
	NetworkDisconnect(ctx context.Context, net, container string, force bool) error
	// ContainerName is empty where there is no container with this id.
	ContainerName(id string) string
	// Emit publishes what happened to a network of this node.
	Emit(kind events.Type, action events.Action, id string, attributes map[string]string)
}

// swarmNetworks are the swarm's networks, as package manager/control has them.
type swarmNetworks interface {
	NetworkList(ctx context.Context, f api.Filters) ([]dnet.Summary, error)
	NetworkInspect(ctx context.Context, name string, verbose bool) (*dnet.Inspect, error)
	NetworkCreate(ctx context.Context, r *dnet.CreateRequest) (*dnet.CreateResponse, error)
	NetworkRemove(ctx context.Context, name string) error
	NetworkPrune(ctx context.Context, f api.Filters) ([]string, error)
}

var _ dockerapi.Networks = networks{}

func (n networks) NetworkCreate(ctx context.Context, r *dnet.CreateRequest) (*dnet.CreateResponse, error) {
	s, why := n.swarm()
	if r.Scope != scopeSwarm && r.Driver != driverOverlay {
		if s != nil && hasNetwork(ctx, s, r.Name) {
			return nil, api.Errorf(api.Exists, "network with name %s already exists in the swarm", r.Name)
		}
		made, err := n.local.Create(ctx, r)
		if err == nil {
			o, _ := n.local.Known(made.ID)
			n.tell(events.ActionCreate, made.ID, o.Name, o.Driver)
		}
		return made, err
	}
	if s == nil {
		return nil, why
	}
	if own, err := n.local.Inspect(r.Name); err == nil && own.Name == r.Name && own.Scope == scopeLocal {
		return nil, api.Errorf(api.Exists, "network with name %s already exists on this node", r.Name)
	}
	return s.NetworkCreate(ctx, r)
}

// hasNetwork reports whether the swarm has a network of that name, other than
// those that every node has.
func hasNetwork(ctx context.Context, s swarmNetworks, name string) bool {
	l, err := s.NetworkList(ctx, api.Filters{"name": {name}})
	return err == nil && slices.ContainsFunc(l, func(o dnet.Summary) bool { return o.Name == name })
}

// tell publishes that a network of this node came or went; the swarm's are told by
// the managers.
func (n networks) tell(action events.Action, id, name, driver string) {
	n.containers.Emit(events.NetworkEventType, action, id, map[string]string{"name": name, "type": driver})
}

func (n networks) NetworkList(ctx context.Context, f api.Filters) ([]dnet.Summary, error) {
	rest, local, swarm, err := splitScope(f)
	if err != nil {
		return nil, err
	}
	list, err := n.local.List(rest)
	if err != nil {
		return nil, err
	}
	s, _ := n.swarm()
	// This node's own list has those of the swarm's networks that it has tasks in;
	// a manager knows them all.
	list = slices.DeleteFunc(list, func(o dnet.Summary) bool {
		if o.Scope == scopeSwarm {
			return !swarm || s != nil
		}
		return !local
	})
	if s == nil || !swarm {
		return list, nil
	}
	more, err := s.NetworkList(ctx, rest)
	return append(list, more...), err
}

// splitScope takes the scope filter out of f and says which scopes it means.
func splitScope(f api.Filters) (rest api.Filters, local, swarm bool, err error) {
	scopes, ok := f["scope"]
	if !ok {
		return f, true, true, nil
	}
	rest = api.Filters{}
	for k, v := range f {
		if k != "scope" {
			rest[k] = v
		}
	}
	for _, s := range scopes {
		switch strings.ToLower(s) {
		case scopeLocal:
			local = true
		case scopeSwarm:
			swarm = true
		case "global":
		default:
			return nil, false, false, api.Errorf(api.Invalid, "invalid filter 'scope=%s'", s)
		}
	}
	return rest, local, swarm, nil
}

func (n networks) NetworkInspect(ctx context.Context, name, scope string, verbose bool) (*dnet.Inspect, error) {
	if !slices.Contains([]string{"", scopeLocal, scopeSwarm, "global"}, scope) {
		return nil, api.Errorf(api.Invalid, "invalid scope %q: want local, swarm or global", scope)
	}
	err := api.Errorf(api.NotFound, "network %s not found", name)
	own, e := n.local.Inspect(name)
	switch {
	case e != nil && !api.Is(e, api.NotFound):
		return nil, e
	case e == nil && own.Scope == scopeLocal && (scope == "" || scope == scopeLocal):
		return n.withNames(own), nil
	}
	s, _ := n.swarm()
	if s == nil || scope == scopeLocal {
		if e != nil || own.Scope != scopeSwarm || scope == scopeLocal {
			return nil, err
		}
		if verbose {
			if own.Services, e = n.local.Services(own.ID); e != nil {
				return nil, e
			}
		}
		return n.withNames(own), nil
	}
	in, err := s.NetworkInspect(ctx, name, verbose)
	if err != nil {
		return nil, err
	}
	// The containers are those of this node; one that was removed may have had the
	// same name.
	if here, e := n.local.Inspect(in.ID); e == nil && here.Scope == scopeSwarm {
		in.Containers, in.Status = here.Containers, nil
		if in.ConfigFrom.Network != "" { // each node has its own
			in.IPAM, in.Options, in.EnableIPv4, in.EnableIPv6 = here.IPAM, here.Options, here.EnableIPv4, here.EnableIPv6
		}
	}
	return n.withNames(in), nil
}

// withNames gives the containers in a network their names: also where they are not
// found by them, as on the default bridge and in the ingress network.
func (n networks) withNames(in *dnet.Inspect) *dnet.Inspect {
	for id, c := range in.Containers {
		if name := n.containers.ContainerName(id); name != "" {
			c.Name = name
			in.Containers[id] = c
		}
	}
	return in
}

func (n networks) NetworkRemove(ctx context.Context, name string) error {
	own, gone := n.local.Inspect(name)
	err := n.local.Remove(ctx, name)
	if gone == nil && err == nil {
		n.tell(events.ActionDestroy, own.ID, own.Name, own.Driver)
	}
	if s, _ := n.swarm(); s != nil && api.Is(err, api.NotFound) {
		return s.NetworkRemove(ctx, name)
	}
	return err
}

func (n networks) NetworkPrune(ctx context.Context, f api.Filters) (*dnet.PruneReport, error) {
	before, err := n.local.List(nil)
	if err != nil {
		return nil, err
	}
	r, err := n.local.Prune(ctx, f)
	if err != nil {
		return nil, err
	}
	for _, o := range before {
		if o.Scope == scopeLocal && slices.Contains(r.NetworksDeleted, o.Name) {
			n.tell(events.ActionDestroy, o.ID, o.Name, o.Driver)
		}
	}
	n.containers.Emit(events.NetworkEventType, events.ActionPrune, "", map[string]string{"reclaimed": "0"})
	if s, _ := n.swarm(); s != nil {
		var more []string
		more, err = s.NetworkPrune(ctx, f)
		r.NetworksDeleted = append(r.NetworksDeleted, more...)
	}
	return r, err
}

func (n networks) NetworkConnect(ctx context.Context, name string, r *dnet.ConnectRequest) error {
	return n.containers.NetworkConnect(ctx, name, r.Container, r.EndpointConfig)
}

func (n networks) NetworkDisconnect(ctx context.Context, name string, r *dnet.DisconnectRequest) error {
	err := n.containers.NetworkDisconnect(ctx, name, r.Container, r.Force)
	if err != nil {
		if _, none := n.NetworkInspect(ctx, name, "", false); api.Is(none, api.NotFound) {
			return none // that the container is not in it follows
		}
	}
	return err
}

// overlays tells this node's networks what the managers say of overlays.
type overlays struct {
	local *network.Networks
	// addr is by which of its addresses other nodes reach this node.
	addr func() netip.Addr
}

var _ agent.Overlays = overlays{}

func (o overlays) DataAddr() netip.Addr { return o.addr() }

func (o overlays) Told(u *api.OverlayUpdate) { o.local.Told(o.addr(), u) }

func (o overlays) Applied(ctx context.Context) error { return o.local.Applied(ctx) }

// dataAddr is the address of this node that tunnels to other nodes use: the one
// named for it, or the one that other nodes are told.
func (m *membership) dataAddr() netip.Addr {
	if a, err := netip.ParseAddr(m.DataPathAddr); err == nil {
		return a
	}
	a, _ := netip.ParseAddrPort(m.AdvertiseAddr)
	return a.Addr()
}
