package control

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

const (
	scopeSwarm    = "swarm"
	driverOverlay = "overlay"
	driverBridge  = "bridge"
)

// NetworkList returns the swarm's networks, but for those that every node has.
func (c *Control) NetworkList(_ context.Context, f api.Filters) ([]network.Summary, error) {
	if err := checkFilters(f, "dangling", "driver", "id", "label", "name", "type"); err != nil {
		return nil, err
	}
	var dangling []bool
	for _, v := range f["dangling"] {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, invalid("invalid filter 'dangling=%s': must be true or false", v)
		}
		dangling = append(dangling, b)
	}
	for _, v := range f["type"] {
		if v != "builtin" && v != "custom" {
			return nil, invalid("invalid filter 'type=%s': must be builtin or custom", v)
		}
	}
	view := c.cfg.Store.View()
	out := []network.Summary{}
	for n := range store.List[*api.Network](view) {
		if n.Predefined || !matchesAny(f["id"], n.ID) || !matchesAny(f["name"], n.Spec.Name) || !matchLabels(f["label"], n.Spec.Labels) ||
			len(f["driver"]) > 0 && !slices.Contains(f["driver"], driver(n)) || len(f["type"]) > 0 && !slices.Contains(f["type"], "custom") ||
			len(dangling) > 0 && !slices.Contains(dangling, dangles(view, n)) {
			continue
		}
		out = append(out, network.Summary{Network: networkOf(n)})
	}
	slices.SortFunc(out, func(a, b network.Summary) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// dangles reports whether nobody needs a network.
func dangles(r store.Reader, n *api.Network) bool {
	services, containers := networkUsers(r, n)
	return !n.Spec.Ingress && len(services)+len(containers) == 0
}

func matchesAny(patterns []string, s string) bool {
	return len(patterns) == 0 || api.MatchesAny(patterns, s)
}

func driver(n *api.Network) string {
	if n.Spec.DriverConfiguration == nil || n.Spec.DriverConfiguration.Name == "" {
		return driverOverlay
	}
	return n.Spec.DriverConfiguration.Name
}

func networkOf(n *api.Network) network.Network {
	out := network.Network{
		Name: n.Spec.Name, ID: n.ID, Created: n.CreatedAt, Scope: scopeSwarm, Driver: driver(n), EnableIPv4: true,
		EnableIPv6: n.Spec.IPv6Enabled, Internal: n.Spec.Internal, Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress,
		Labels: n.Spec.Labels, Options: n.DriverState.Options,
		IPAM: network.IPAM{Driver: "default", Options: map[string]string{}, Config: []network.IPAMConfig{}},
	}
	if n.Spec.ConfigFrom != nil {
		out.ConfigFrom = *n.Spec.ConfigFrom
	}
	if n.Spec.IPAMOptions != nil && n.Spec.IPAMOptions.Driver.Options != nil {
		out.IPAM.Options = n.Spec.IPAMOptions.Driver.Options
	}
	if n.IPAMOptions == nil {
		return out
	}
	for _, c := range n.IPAMOptions.Configs {
		cfg := network.IPAMConfig{Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway}
		for name, a := range n.Reserved {
			if c.Subnet.Contains(a) {
				if cfg.AuxAddress == nil {
					cfg.AuxAddress = map[string]netip.Addr{}
				}
				cfg.AuxAddress[name] = a
			}
		}
		out.IPAM.Config = append(out.IPAM.Config, cfg)
	}
	return out
}

// NetworkInspect returns a network of the swarm, with the nodes that run a task
// in it; also those that every node has, which services can use by name. verbose
// adds the services and their tasks.
func (c *Control) NetworkInspect(_ context.Context, name string, verbose bool) (*network.Inspect, error) {
	view := c.cfg.Store.View()
	n, err := find(view, "network", name, networkID)
	if err != nil {
		return nil, err
	}
	in := &network.Inspect{Network: networkOf(n), Containers: map[string]network.EndpointResource{}}
	if !n.Predefined {
		in.Peers = peers(view, n)
	}
	if verbose {
		in.Services = serviceInfos(view, n)
	}
	return in, nil
}

// networkUsers says who needs a network: services by name, also those whose update may
// yet be taken back, or has not reached all tasks, and containers that
// nodes' users run in it. Tasks of services that are gone are on their way out and
// keep nobody from removing it, so that a stack can be removed, and deployed again,
// at once.
func networkUsers(r store.Reader, n *api.Network) (services, containers []string) {
	for t := range store.List[*api.Task](r, store.ByNetwork(n.ID)) {
		if !t.Attachment() || api.Final(t.Status.State) {
			continue
		}
		at := t.NodeID
		if o := store.Get[*api.Node](r, t.NodeID); o != nil && o.Description.Hostname != "" {
			at = o.Description.Hostname
		}
		containers = append(containers, t.Name()+" on node "+at)
	}
	slices.Sort(containers)
	services = serviceUsers(r, n)
	for s := range store.List[*api.Service](r) {
		if s.PreviouslyIn(n.ID) && !slices.Contains(services, s.Spec.Name) {
			services = append(services, s.Spec.Name+" (as it was before its update, which is not over)")
		}
	}
	return services, containers
}

// serviceUsers are the names of the services that need a network.
func serviceUsers(r store.Reader, n *api.Network) []string {
	var names []string
	if n.Spec.Ingress {
		for s := range store.List[*api.Service](r) {
			if api.UsesIngress(s.Spec.EndpointSpec) {
				names = append(names, s.Spec.Name)
			}
		}
	}
	for s := range store.List[*api.Service](r, store.ByNetwork(n.ID)) {
		names = append(names, s.Spec.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// maxNamed bounds how many users a refusal names.
const maxNamed = 10

// NetworkRemove removes a network that no service uses.
func (c *Control) NetworkRemove(ctx context.Context, name string) error {
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		n, err := find(tx, "network", name, networkID)
		if err != nil {
			return err
		}
		return removeNetwork(tx, n)
	})
	return err
}

func removeNetwork(tx *store.Tx, n *api.Network) error {
	if n.Predefined {
		return api.Errorf(api.PermissionDenied, "%s is a pre-defined network and cannot be removed", n.Spec.Name)
	}
	services, containers := networkUsers(tx, n)
	switch {
	case len(services)+len(containers) == 0:
		return store.Delete[*api.Network](tx, n.ID) // refused when applied if somebody has come to use it
	case n.Spec.Ingress:
		return api.Errorf(api.Conflict, "ingress network cannot be removed because service %s depends on it", someOf(services))
	case len(services) == 0:
		return api.Errorf(api.Conflict, "network %s is in use by container %s; stop it, or disconnect it from the network, there", n.Spec.Name, someOf(containers))
	case len(containers) == 0:
		return api.Errorf(api.Conflict, "network %s is in use by service %s", n.Spec.Name, someOf(services))
	}
	return api.Errorf(api.Conflict, "network %s is in use by service %s and container %s", n.Spec.Name, someOf(services), someOf(containers))
}

// someOf lists names, but not too many.
func someOf(names []string) string {
	if len(names) > maxNamed {
		return strings.Join(names[:maxNamed], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// NetworkPrune removes the networks that no service uses, but for the ingress
// network, and returns their names. Filters: label, label!, until.
func (c *Control) NetworkPrune(ctx context.Context, f api.Filters) ([]string, error) {
	if err := checkFilters(f, "label", "label!", "until"); err != nil {
		return nil, err
	}
	until, err := parseUntil(f["until"], c.cfg.Store.Now())
	if err != nil {
		return nil, err
	}
	var removed []string
	for n := range store.List[*api.Network](c.cfg.Store.View()) {
		if n.Predefined || n.Spec.Ingress || !matchLabels(f["label"], n.Spec.Labels) ||
			len(f["label!"]) > 0 && matchLabels(f["label!"], n.Spec.Labels) || !until.IsZero() && n.CreatedAt.After(until) {
			continue
		}
		switch err := c.NetworkRemove(ctx, n.ID); {
		case err == nil:
			removed = append(removed, n.Spec.Name)
		case !api.Is(err, api.Conflict) && !api.Is(err, api.NotFound):
			return removed, err
		}
	}
	slices.Sort(removed)
	return removed, nil
}

// parseUntil reads a time (RFC 3339, Unix seconds) or an age.
func parseUntil(values []string, now time.Time) (time.Time, error) {
	if len(values) == 0 {
		return time.Time{}, nil
	}
	if len(values) == 1 {
		if d, err := time.ParseDuration(values[0]); err == nil {
			return now.Add(-d), nil
		}
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
			if t, err := time.Parse(layout, values[0]); err == nil {
				return t, nil
			}
		}
		if s, err := strconv.ParseFloat(values[0], 64); err == nil {
			return time.Unix(0, int64(s*float64(time.Second))), nil
		}
	}
	return time.Time{}, invalid("filter until=%v: must be one time (RFC 3339, Unix seconds) or duration such as 24h", values)
}

var errNoIngress = errors.New("service needs ingress network, but no ingress network is present")

// attachable checks that a service can have its networks.
func attachable(r store.Reader, s *swarm.ServiceSpec, nets []*api.Network) error {
	for _, n := range nets {
		switch {
		case n.Spec.Ingress:
			return invalid("Service cannot be explicitly attached to the ingress network %q", n.Spec.Name)
		case len(nets) > 1 && n.Predefined && n.Spec.Name != "bridge":
			return invalid("network %s: a task in it can't have other networks", n.Spec.Name)
		}
	}
	if !api.UsesIngress(s.EndpointSpec) {
		return nil
	}
	for n := range store.List[*api.Network](r) {
		if n.Spec.Ingress && store.Get[*api.Network](r, n.ID) != nil { // the service depends on it
			return nil
		}
	}
	return api.Errorf(api.Conflict, "%w: make one with docker network create --ingress --driver overlay NAME", errNoIngress)
}
