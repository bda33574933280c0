package control

import (
	"context"
	"slices"

	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// NetworkList returns the swarm's networks, but for those that every node has.
func (c *Control) NetworkList(_ context.Context, f api.Filters) ([]network.Summary, error) {
	if err := checkFilters(f, "dangling", "driver", "id", "label", "name", "type"); err != nil {
		return nil, err
	}
	out := []network.Summary{}
	for n := range store.List[*api.Network](c.cfg.Store.View()) {
		if n.Predefined || !anyPrefix(f["id"], n.ID) || !anyPrefix(f["name"], n.Spec.Name) || !matchLabels(f["label"], n.Spec.Labels) ||
			len(f["driver"]) > 0 && !slices.Contains(f["driver"], driver(n)) || len(f["type"]) > 0 && !slices.Contains(f["type"], "custom") {
			continue
		}
		out = append(out, network.Summary{Network: networkOf(n)})
	}
	return out, nil
}

func driver(n *api.Network) string {
	if n.Spec.DriverConfiguration == nil || n.Spec.DriverConfiguration.Name == "" {
		return "overlay"
	}
	return n.Spec.DriverConfiguration.Name
}

func networkOf(n *api.Network) network.Network {
	return network.Network{
		Name: n.Spec.Name, ID: n.ID, Created: n.CreatedAt, Scope: "swarm", Driver: driver(n), EnableIPv4: true,
		EnableIPv6: n.Spec.IPv6Enabled, Internal: n.Spec.Internal, Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress,
		Labels: n.Spec.Labels, Options: map[string]string{},
	}
}

// NetworkInspect returns a network of the swarm; also those that every node has,
// which services can use by name.
func (c *Control) NetworkInspect(_ context.Context, name string, _ bool) (*network.Inspect, error) {
	n, err := find(c.cfg.Store.View(), "network", name, networkID)
	if err != nil {
		return nil, err
	}
	return &network.Inspect{Network: networkOf(n), Containers: map[string]network.EndpointResource{}}, nil
}

// NetworkCreate is for overlay networks.
func (c *Control) NetworkCreate(context.Context, *network.CreateRequest) (*network.CreateResponse, error) {
	return nil, api.Errorf(api.Unimplemented, "networks of scope swarm (driver overlay) are not served yet: services can use host, bridge and none")
}

// NetworkRemove is for networks that NetworkCreate made.
func (c *Control) NetworkRemove(_ context.Context, name string) error {
	n, err := find(c.cfg.Store.View(), "network", name, networkID)
	if err != nil {
		return err
	}
	return api.Errorf(api.PermissionDenied, "%s is a pre-defined network and cannot be removed", n.Spec.Name)
}
