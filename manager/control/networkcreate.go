package control

import (
	"context"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/allocator"
	"github.com/legion-swarm/legion/store"
)

const (
	// maxNetworks bounds a swarm's networks: each is looked at when one is made.
	maxNetworks    = 10_000
	maxNetworkName = 255
	// maxSubnets bounds a network's subnets.
	maxSubnets = 64
	// maxReserved bounds a network's auxiliary addresses.
	maxReserved = 1000
	minMTU      = 68   // RFC 791
	minMTU6     = 1280 // RFC 8200
	maxMTU      = 65535
	// minBits6 is the shortest mask of an IPv6 subnet: the allocator counts in 64 bits.
	minBits6 = 64
)

// IngressName is what the network of the routing mesh is called unless a user
// makes another.
const IngressName = "ingress"

// Ingress returns the network of the routing mesh as a new swarm has it.
// routes are those of this manager's host. Errors: ResourceExhausted, they leave
// no subnet of the swarm's pools.
func Ingress(c *api.Cluster, routes ...netip.Prefix) (*api.Network, error) {
	n := &api.Network{}
	n.ID = api.NewID()
	n.Spec = swarm.NetworkSpec{
		Annotations: swarm.Annotations{Name: IngressName, Labels: map[string]string{}}, Ingress: true, Scope: scopeSwarm,
		DriverConfiguration: &swarm.Driver{Name: driverOverlay}, IPAMOptions: &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}},
	}
	pools := allocator.PoolsOf(c)
	pools.Routes = routes
	given, err := allocator.Network(n, slices.Values([]*api.Network(nil)), pools, 0)
	if err != nil {
		return nil, api.Errorf(api.ClassOf(err), "ingress network: %w; give the swarm another pool (docker swarm init --default-addr-pool)", err)
	}
	return given, nil
}

// NetworkCreate adds an overlay network, with subnets, gateways and VXLAN id.
// Errors name the field; Conflict: what is asked for is another network's;
// Exists: its name.
func (c *Control) NetworkCreate(ctx context.Context, q *network.CreateRequest) (*network.CreateResponse, error) {
	if err := validateNetwork(q); err != nil {
		return nil, err
	}
	routes, err := c.routes(ctx)
	if err != nil {
		return nil, err
	}
	n := networkFrom(q)
	_, err = c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		cluster, err := c.cluster(tx)
		if err != nil {
			return err
		}
		if err := roomFor(tx, n); err != nil {
			return err
		}
		given := n
		if !nodeLocal(driver(n)) {
			pools := allocator.PoolsOf(cluster)
			pools.Routes = routes
			given, err = allocator.Network(n, store.List[*api.Network](tx), pools, c.cfg.Store.View().Index())
			if api.Is(err, api.ResourceExhausted) {
				return api.Errorf(api.ResourceExhausted, "network %s: %w; remove networks, or name a subnet of your own (--subnet)", q.Name, err)
			}
			if err != nil {
				return api.Errorf(api.ClassOf(err), "network %s: %w", q.Name, err)
			}
		}
		if err := store.Create(tx, given); api.Is(err, api.Exists) {
			return api.Errorf(api.Exists, "network with name %s already exists", q.Name)
		} else if err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &network.CreateResponse{ID: n.ID}, nil
}

// routes are those of this manager's host.
func (c *Control) routes(ctx context.Context) ([]netip.Prefix, error) {
	if c.cfg.Routes == nil {
		return nil, nil
	}
	l, err := c.cfg.Routes(ctx)
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "this manager can't see which addresses its host uses: %w", err)
	}
	return l, nil
}

// roomFor refuses one network too many.
func roomFor(tx *store.Tx, n *api.Network) error {
	if have := store.Count[*api.Network](tx); have >= maxNetworks {
		return api.Errorf(api.ResourceExhausted, "the swarm has %d networks, the most that it may have; remove some (docker network prune)", have)
	}
	if !n.Spec.Ingress {
		return nil
	}
	for o := range store.List[*api.Network](tx) {
		if o.Spec.Ingress {
			return api.Errorf(api.Exists, "ingress network (%s) already present", o.Spec.Name)
		}
	}
	return nil
}

// networkFrom returns what was asked for as an object, with nothing allocated.
func networkFrom(q *network.CreateRequest) *api.Network {
	n := &api.Network{}
	n.ID = api.NewID()
	n.Spec = swarm.NetworkSpec{
		Annotations:         swarm.Annotations{Name: q.Name, Labels: orEmptyMap(q.Labels)},
		DriverConfiguration: &swarm.Driver{Name: driverOverlay, Options: maps.Clone(q.Options)},
		IPv6Enabled:         q.EnableIPv6 != nil && *q.EnableIPv6, Internal: q.Internal, Attachable: q.Attachable, Ingress: q.Ingress,
		Scope:       scopeSwarm,
		IPAMOptions: &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}},
	}
	if nodeLocal(q.Driver) {
		n.Spec.DriverConfiguration.Name, n.Spec.ConfigFrom = q.Driver, q.ConfigFrom
		n.DriverState = swarm.Driver{Name: q.Driver}
		return n
	}
	if q.IPAM == nil {
		return n
	}
	n.Spec.IPAMOptions.Driver.Options = maps.Clone(q.IPAM.Options)
	for _, cfg := range q.IPAM.Config {
		n.Spec.IPAMOptions.Configs = append(n.Spec.IPAMOptions.Configs, swarm.IPAMConfig{Subnet: cfg.Subnet, Range: cfg.IPRange, Gateway: cfg.Gateway})
		for name, a := range cfg.AuxAddress {
			if n.Reserved == nil {
				n.Reserved = map[string]netip.Addr{}
			}
			n.Reserved[name] = a
		}
	}
	return n
}

func orEmptyMap(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}

// validateNetwork checks a request by itself.
func validateNetwork(q *network.CreateRequest) error {
	switch {
	case len(q.Name) > maxNetworkName || !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`).MatchString(q.Name):
		return invalid("invalid network name %q: only letters, digits, _ . and - are allowed, at most %d, beginning with a letter or digit", q.Name, maxNetworkName)
	case slices.Contains([]string{"bridge", "host", "none", "default"}, q.Name):
		return api.Errorf(api.PermissionDenied, "operation is not permitted on predefined %s network", q.Name)
	case q.ConfigOnly:
		return invalid("network %s: a configuration network is a node's own: make it on each node, without --scope swarm", q.Name)
	case nodeLocal(q.Driver):
		return validateNodeLocal(q)
	case q.Driver != "" && q.Driver != driverOverlay:
		return api.Errorf(api.NotFound, "network driver %q can't make a network of scope swarm: overlay can, bridge, and macvlan with --config-from", q.Driver)
	case q.Scope != "" && q.Scope != scopeSwarm:
		return invalid("network %s: an overlay network's scope is swarm, not %q (--scope)", q.Name, q.Scope)
	case q.ConfigFrom != nil && q.ConfigFrom.Network != "":
		return api.Errorf(api.Unimplemented, "network %s: an overlay network can't be made from a configuration network (--config-from); give the options themselves", q.Name)
	case q.Ingress && q.Attachable:
		return invalid("network %s: the ingress network cannot be attachable", q.Name)
	case q.Ingress && q.Internal:
		return invalid("network %s: the ingress network cannot be internal", q.Name)
	case q.EnableIPv4 != nil && !*q.EnableIPv4:
		return api.Errorf(api.Unimplemented, "network %s: an overlay network without IPv4 is not served (--ipv4=false)", q.Name)
	}
	if err := validateLabels(q.Labels); err != nil {
		return err
	}
	if err := validateNetworkOptions(q); err != nil {
		return api.Errorf(api.ClassOf(err), "network %s: %w", q.Name, err)
	}
	if mtu, _ := strconv.Atoi(q.Options[api.OptionMTU]); mtu != 0 && mtu < minMTU6 && q.EnableIPv6 != nil && *q.EnableIPv6 {
		return invalid("network %s: option %s=%d: with IPv6 an MTU must be %d bytes at least", q.Name, api.OptionMTU, mtu, minMTU6)
	}
	if err := validateIPAM(q); err != nil {
		return api.Errorf(api.ClassOf(err), "network %s: %w", q.Name, err)
	}
	return nil
}

// nodeLocal reports whether each node has networks of a driver for itself.
func nodeLocal(driver string) bool { return driver == "macvlan" || driver == driverBridge }

// validateNodeLocal checks a network of the swarm that each node makes for itself. A
// bridge needs no configuration: each node has subnets to choose from.
func validateNodeLocal(q *network.CreateRequest) error {
	own := q.IPAM != nil && len(q.IPAM.Config) > 0 || len(q.Options) > 0 || q.EnableIPv6 != nil && *q.EnableIPv6
	from := q.ConfigFrom != nil && q.ConfigFrom.Network != ""
	switch {
	case !from && (own || q.Driver != driverBridge):
		return invalid("network %s: a %s network of scope swarm takes its options and addresses from a configuration network that each node has (--config-from); make that with --config-only", q.Name, q.Driver)
	case own:
		return api.Errorf(api.PermissionDenied, "network %s: user supplied configurations are not supported if the network depends on a configuration network (--config-from %s)", q.Name, q.ConfigFrom.Network)
	case q.Ingress:
		return invalid("network %s: the ingress network must have the overlay driver", q.Name)
	}
	return validateLabels(q.Labels)
}

func validateNetworkOptions(q *network.CreateRequest) error {
	for _, k := range slices.Sorted(maps.Keys(q.Options)) {
		v := q.Options[k]
		switch {
		case k == api.OptionVNIs:
			if _, err := allocator.ParseVNIs(v, subnets4(q)); err != nil {
				return err
			}
		case k == api.OptionMTU:
			if n, err := strconv.Atoi(v); err != nil || n != 0 && (n < minMTU || n > maxMTU) {
				return invalid("option %s=%q: want a number of bytes from %d to %d", k, v, minMTU, maxMTU)
			}
		case k == api.OptionEncrypted:
			if _, err := strconv.ParseBool(v); v != "" && err != nil {
				return invalid("option %s=%q: want true, false or no value, which means true", k, v)
			}
		case strings.HasPrefix(k, "com.docker.network."):
			return invalid("option %s is not served by overlay networks", k)
		}
	}
	return nil
}

// subnets4 returns how many IPv4 subnets a network will have.
func subnets4(q *network.CreateRequest) (n int) {
	if q.IPAM != nil {
		for i := range q.IPAM.Config {
			if q.IPAM.Config[i].Subnet.Addr().Is4() {
				n++
			}
		}
	}
	return max(n, 1)
}

func validateIPAM(q *network.CreateRequest) error {
	if q.IPAM == nil {
		return nil
	}
	if d := q.IPAM.Driver; d != "" && d != "default" {
		return api.Errorf(api.NotFound, "IPAM driver %q not found; there is only \"default\"", d)
	}
	reserved := map[string]bool{}
	var seen []netip.Prefix
	for i := range q.IPAM.Config {
		c := &q.IPAM.Config[i]
		if err := validateSubnet(c, q.EnableIPv6 != nil && *q.EnableIPv6); err != nil {
			return err
		}
		if i := slices.IndexFunc(seen, c.Subnet.Overlaps); i >= 0 {
			return invalid("subnets %s and %s overlap", seen[i], c.Subnet)
		}
		if seen = append(seen, c.Subnet); len(seen) > maxSubnets {
			return invalid("%d subnets: at most %d are allowed", len(q.IPAM.Config), maxSubnets)
		}
		for _, name := range slices.Sorted(maps.Keys(c.AuxAddress)) {
			switch a := c.AuxAddress[name]; {
			case reserved[name]:
				return invalid("auxiliary address %s is named twice", name)
			case !c.Subnet.Contains(a):
				return invalid("invalid auxiliary address %s=%s: parent subnet %s doesn't contain this address", name, a, c.Subnet)
			case a == c.Gateway:
				return invalid("invalid auxiliary address %s=%s: it is the gateway", name, a)
			}
			reserved[name] = true
		}
	}
	if len(reserved) > maxReserved {
		return invalid("%d auxiliary addresses: at most %d are allowed", len(reserved), maxReserved)
	}
	return nil
}

func validateSubnet(c *network.IPAMConfig, v6 bool) error {
	s := c.Subnet
	switch {
	case !s.IsValid():
		return invalid("a gateway, ip-range or auxiliary address needs a subnet (--subnet)")
	case s != s.Masked():
		return invalid("invalid subnet %s: it should be %s", s, s.Masked())
	case s.Addr().Is4In6() || s.Addr().IsLoopback() || s.Addr().IsMulticast() || s.Addr().IsUnspecified():
		return invalid("invalid subnet %s: tasks can't have such addresses", s)
	case s.Addr().Is6() && !v6:
		return invalid("subnet %s, but IPv6 is not enabled (--ipv6)", s)
	case s.Addr().Is6() && s.Bits() < minBits6:
		return invalid("invalid subnet %s: an IPv6 subnet is a /%d or smaller", s, minBits6)
	case s.Addr().BitLen()-s.Bits() < 2:
		return invalid("subnet %s has no room for a gateway and tasks", s)
	case c.Gateway.IsValid() && !s.Contains(c.Gateway):
		return invalid("invalid gateway %s: parent subnet %s doesn't contain this address", c.Gateway, s)
	case api.OwnOfSubnet(s, c.Gateway):
		return invalid("invalid gateway %s: that address is its subnet's own, not a host's", c.Gateway)
	case c.IPRange.IsValid() && (c.IPRange != c.IPRange.Masked() || !s.Contains(c.IPRange.Addr()) || c.IPRange.Bits() < s.Bits()):
		return invalid("invalid ip-range %s: it must be a block inside subnet %s", c.IPRange, s)
	}
	return nil
}
