package network

import (
	"context"
	"net/netip"

	"github.com/legion-swarm/legion/api"
)

// Routes are the prefixes that this host routes, other than by devices of its own
// networks, and other than the default route.
func (n *Networks) Routes(ctx context.Context) ([]netip.Prefix, error) {
	h, err := n.plane.Host(ctx)
	if err != nil {
		return nil, err
	}
	return h.Prefixes, nil
}

// checkRoutes refuses networks that are new to this node if a route of the host is
// in their way: their containers could not reach what is there, or would be taken
// for it.
func (n *Networks) checkRoutes(networks []*api.Network) error {
	var fresh []*api.Network
	n.mu.Lock()
	for _, o := range networks {
		if !o.Predefined && n.nets[o.ID] == nil {
			fresh = append(fresh, o)
		}
	}
	n.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), n.o.SetTimeout)
	defer cancel()
	routes, err := n.Routes(ctx)
	if err != nil {
		return api.Errorf(api.Unavailable, "network %s: look at the host's routes: %w", fresh[0].Spec.Name, err)
	}
	for _, o := range fresh {
		for _, s := range o.Subnets() {
			if r := overlapping(routes, s); r.IsValid() {
				return api.Errorf(api.Invalid, "network %s: its subnet %s overlaps the route to %s of this node's host, so containers could not reach what is there; make the network with another subnet, or remove the route",
					o.Spec.Name, s, r)
			}
		}
	}
	return nil
}

// overlapping returns the first that overlaps p; the zero one if none does.
func overlapping(l []netip.Prefix, p netip.Prefix) netip.Prefix {
	for _, r := range l {
		if r.Overlaps(p) {
			return r
		}
	}
	return netip.Prefix{}
}
