package node

import (
	"context"
	"slices"
	"strings"

	dnet "github.com/moby/moby/api/types/network"

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
	return &engine.Sandbox{Path: j.Path, Endpoints: j.Endpoints, Ports: j.Ports, DNS: j.DNS}, nil
}

// Scopes of networks, as Docker names them.
const (
	scopeLocal = "local"
	scopeSwarm = "swarm"
)

// networks serves the API's networks: this node's own, and on a manager those
// of the swarm, which come second where both have a name.
type networks struct {
	local *network.Networks
	// swarm returns nil unless this node is a manager.
	swarm func() swarmNetworks
	// containers connects running containers.
	containers containerNetworks
}

// containerNetworks is the engine, for running containers' networks.
type containerNetworks interface {
	NetworkConnect(ctx context.Context, net, container string, e *dnet.EndpointSettings) error
	NetworkDisconnect(ctx context.Context, net, container string, force bool) error
}

// swarmNetworks are the swarm's networks, as package manager/control has them.
type swarmNetworks interface {
	NetworkList(ctx context.Context, f api.Filters) ([]dnet.Summary, error)
	NetworkInspect(ctx context.Context, name string, verbose bool) (*dnet.Inspect, error)
	NetworkCreate(ctx context.Context, r *dnet.CreateRequest) (*dnet.CreateResponse, error)
	NetworkRemove(ctx context.Context, name string) error
}

var _ dockerapi.Networks = networks{}

func (n networks) NetworkCreate(ctx context.Context, r *dnet.CreateRequest) (*dnet.CreateResponse, error) {
	if r.Scope != scopeSwarm && r.Driver != "overlay" {
		return n.local.Create(ctx, r)
	}
	s := n.swarm()
	if s == nil {
		return nil, api.Errorf(api.Unavailable, "%s", notManager)
	}
	return s.NetworkCreate(ctx, r)
}

func (n networks) NetworkList(ctx context.Context, f api.Filters) ([]dnet.Summary, error) {
	rest, local, swarm, err := splitScope(f)
	if err != nil {
		return nil, err
	}
	list := []dnet.Summary{}
	if local {
		if list, err = n.local.List(rest); err != nil {
			return nil, err
		}
	}
	if s := n.swarm(); s != nil && swarm {
		more, err := s.NetworkList(ctx, rest)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
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
	if scope == "" || scope == scopeLocal {
		var found *dnet.Inspect
		if found, err = n.local.Inspect(name); err == nil || !api.Is(err, api.NotFound) {
			return found, err
		}
	}
	if s := n.swarm(); s != nil && scope != scopeLocal {
		return s.NetworkInspect(ctx, name, verbose)
	}
	return nil, err
}

func (n networks) NetworkRemove(ctx context.Context, name string) error {
	err := n.local.Remove(ctx, name)
	if s := n.swarm(); s != nil && api.Is(err, api.NotFound) {
		return s.NetworkRemove(ctx, name)
	}
	return err
}

func (n networks) NetworkPrune(ctx context.Context, f api.Filters) (*dnet.PruneReport, error) {
	return n.local.Prune(ctx, f)
}

func (n networks) NetworkConnect(ctx context.Context, name string, r *dnet.ConnectRequest) error {
	return n.containers.NetworkConnect(ctx, name, r.Container, r.EndpointConfig)
}

func (n networks) NetworkDisconnect(ctx context.Context, name string, r *dnet.DisconnectRequest) error {
	return n.containers.NetworkDisconnect(ctx, name, r.Container, r.Force)
}
