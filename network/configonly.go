package network

import (
	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// A configuration network (--config-only) is a name for options, which other
// networks of this node are made from (--config-from): so a network of the swarm can
// have a device and addresses of its own on each node. Nobody can be in it.

// configNetwork is one, as a new record. Callers hold mu.
func (n *Networks) configNetwork(r *record, q *dnet.CreateRequest) error {
	r.Network.ConfigOnly, r.Network.Driver = true, "null"
	r.Network.EnableIPv4, r.Network.EnableIPv6 = families(q)
	r.Network.IPAM = ipamOf(q)
	if q.IPAM == nil {
		return nil
	}
	if len(q.IPAM.Config) > maxSubnets {
		return tooManySubnets(q.Name)
	}
	for _, c := range q.IPAM.Config {
		if err := checkSubnet(q.Name, c, r.Network.EnableIPv4, r.Network.EnableIPv6); err != nil {
			return err
		}
		r.Network.IPAM.Config = append(r.Network.IPAM.Config, c)
	}
	return nil
}

// fromConfig returns the request with the options of the configuration network that
// it names, if it names one. Callers hold mu.
func (n *Networks) fromConfig(q *dnet.CreateRequest) (*dnet.CreateRequest, error) {
	if q.ConfigFrom == nil || q.ConfigFrom.Network == "" {
		return q, nil
	}
	if q.IPAM != nil && len(q.IPAM.Config) > 0 || len(q.Options) > 0 || len(q.Labels) > 0 || q.EnableIPv6 != nil && *q.EnableIPv6 {
		return nil, api.Errorf(api.PermissionDenied, "network %s: user supplied configurations are not supported if the network depends on a configuration network (--config-from %s): it says the options, addresses and labels", q.Name, q.ConfigFrom.Network)
	}
	c, err := n.lookup(q.ConfigFrom.Network)
	if err != nil {
		return nil, api.Errorf(api.NotFound, "network %s: configuration network %q not found on this node; make it with --config-only", q.Name, q.ConfigFrom.Network)
	}
	if !c.Network.ConfigOnly {
		return nil, api.Errorf(api.PermissionDenied, "network %s: network %q is not a configuration network", q.Name, q.ConfigFrom.Network)
	}
	own := *q
	own.EnableIPv4, own.EnableIPv6 = &c.Network.EnableIPv4, &c.Network.EnableIPv6
	own.Options, own.Labels = c.Network.Options, c.Network.Labels
	own.IPAM = &dnet.IPAM{Driver: c.Network.IPAM.Driver, Options: c.Network.IPAM.Options, Config: c.Network.IPAM.Config}
	own.ConfigFrom = &dnet.ConfigReference{Network: c.Network.Name}
	return &own, nil
}

// configUsers are the networks that were made from a configuration network. Callers
// hold mu.
func (n *Networks) configUsers(name string) []string {
	var l []string
	for _, w := range n.nets {
		if w.Network.ConfigFrom.Network == name {
			l = append(l, w.Network.Name)
		}
	}
	return l
}

// holdLocal makes a network of the swarm that each node has for itself, after its
// own configuration network; a bridge without one is as any other here. host was
// looked at before. Callers hold mu; what it returns is as of holdLocked.
func (n *Networks) holdLocal(o *api.Network, host *Host) (*wish, error) {
	if n.closed {
		return nil, errClosed
	}
	if w := n.nets[o.ID]; w != nil {
		w.holds++
		return nil, nil
	}
	name := ""
	if o.Spec.ConfigFrom != nil {
		name = o.Spec.ConfigFrom.Network
	}
	switch {
	case !validContainerID(o.ID):
		return nil, api.Errorf(api.Invalid, "network %s has the impossible id %q", o.Spec.Name, o.ID)
	case name == "" && o.DriverState.Name != driverBridge:
		return nil, api.Errorf(api.Invalid, "network %s: a network of the swarm with driver %s needs a configuration network on each node (--config-from)", o.Spec.Name, o.DriverState.Name)
	case len(n.nets)+len(n.creating) >= maxNetworks:
		return nil, api.Errorf(api.ResourceExhausted, "this node has %d networks, the most it may have", len(n.nets))
	}
	q, err := n.fromConfig(&dnet.CreateRequest{Name: o.Spec.Name, Driver: o.DriverState.Name, ConfigFrom: &dnet.ConfigReference{Network: name}, Internal: o.Spec.Internal, Attachable: o.Spec.Attachable})
	if err != nil {
		return nil, api.Errorf(api.Invalid, "%w", err)
	}
	r, err := n.newRecord(q, host)
	if err != nil {
		return nil, err
	}
	r.Network.ID, r.Network.Created, r.Network.Scope, r.Managed = o.ID, o.CreatedAt, scopeSwarm, true
	if err := n.add(r); err != nil {
		return nil, err
	}
	n.nets[o.ID].holds++
	return n.files.want(n.overlaysDir(), o.ID, r), nil
}

// ownOfNodes reports whether a network of the swarm is one that each node has for
// itself.
func ownOfNodes(o *api.Network) bool {
	return o.DriverState.Name == driverMacvlan || o.DriverState.Name == driverBridge
}
