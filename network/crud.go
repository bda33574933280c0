package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// Inspect returns a network, by id, name or unambiguous id prefix, with its
// containers, and an overlay's nodes.
func (n *Networks) Inspect(name string) (*dnet.Inspect, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, err := n.lookup(name)
	if err != nil {
		return nil, err
	}
	r := &dnet.Inspect{Network: w.Network, Containers: map[string]dnet.EndpointResource{}, Status: w.status()}
	if w.Overlay != nil {
		r.Peers = n.peersOf(w)
	}
	for id := range w.users {
		for _, e := range n.boxes[id].Endpoints {
			if e.NetworkID == w.Network.ID {
				r.Containers[id] = resource(id, e.Settings)
			}
		}
	}
	return r, nil
}

// Known returns a network that is known here, by name or id.
func (n *Networks) Known(net string) (_ dnet.Network, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, err := n.lookup(net)
	if err != nil {
		return dnet.Network{}, false
	}
	return w.Network, true
}

// resource describes an endpoint in a network's inspect.
func resource(id string, s *dnet.EndpointSettings) dnet.EndpointResource {
	r := dnet.EndpointResource{Name: id[:min(12, len(id))], EndpointID: s.EndpointID, MacAddress: s.MacAddress}
	if len(s.DNSNames) > 0 {
		r.Name = s.DNSNames[0]
	}
	if s.IPAddress.IsValid() {
		r.IPv4Address = netip.PrefixFrom(s.IPAddress, s.IPPrefixLen)
	}
	if s.GlobalIPv6Address.IsValid() {
		r.IPv6Address = netip.PrefixFrom(s.GlobalIPv6Address, s.GlobalIPv6PrefixLen)
	}
	return r
}

func (w *netw) status() *dnet.Status {
	s := &dnet.Status{IPAM: dnet.IPAMStatus{Subnets: dnet.SubnetStatuses{}}}
	for _, p := range slices.Concat(w.v4, w.v6) {
		used := uint64(len(p.taken))
		if hasNetworkAddress(p.subnet) {
			used++
			if p.subnet.Addr().Is4() {
				used++
			}
		}
		s.IPAM.Subnets[p.subnet] = dnet.SubnetStatus{IPsInUse: used, DynamicIPsAvailable: p.free()}
	}
	return s
}

// List returns the networks that pass the filters, by name: driver, id (a
// part), label, name (a part), scope, type (builtin or custom), dangling.
func (n *Networks) List(f api.Filters) ([]dnet.Summary, error) {
	match, err := compileFilters(f, "driver", "id", "label", "name", "scope", "type", "dangling")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := []dnet.Summary{}
	for _, w := range n.nets {
		if match(w) {
			l = append(l, dnet.Summary{Network: w.Network})
		}
	}
	slices.SortFunc(l, func(a, b dnet.Summary) int { return strings.Compare(a.Name, b.Name) })
	return l, nil
}

// Remove removes a network that nobody is in.
func (n *Networks) Remove(ctx context.Context, name string) error {
	w, err := n.take(name, func(w *netw) error {
		switch {
		case w.ofSwarm():
			return api.Errorf(api.NotFound, "network %s not found on this node: it is the swarm's", name)
		case predefined(w.Network.Name):
			return api.Errorf(api.PermissionDenied, "%s is a pre-defined network and cannot be removed", w.Network.Name)
		case w.Network.ConfigOnly && len(n.configUsers(w.Network.Name)) > 0:
			return api.Errorf(api.PermissionDenied, "configuration network %q is in use by network %s", w.Network.Name, strings.Join(n.configUsers(w.Network.Name), ", "))
		case len(w.users) > 0:
			return api.Errorf(api.PermissionDenied, "network %s has active endpoints (%s); disconnect or remove these containers first",
				w.Network.Name, n.describeUsers(w))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return n.dispose(ctx, w)
}

// take removes a network from what is known, unless check refuses.
func (n *Networks) take(name string, check func(*netw) error) (*netw, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errClosed
	}
	w, err := n.lookup(name)
	if err == nil {
		err = check(w)
	}
	if err != nil {
		return nil, err
	}
	delete(n.nets, w.Network.ID)
	return w, nil
}

// dispose forgets networks that were taken out.
func (n *Networks) dispose(ctx context.Context, l ...*netw) error {
	var errs []error
	items := []Item{RulesItem}
	for _, w := range l {
		if err := forget(n.o.Dir, w.Network.ID); err != nil {
			errs = append(errs, api.Errorf(api.Internal, "network %s is removed, but its file isn't and it will be back after a restart: %w", w.Network.Name, err))
		}
		items = append(items, BridgeItem(w.Device))
	}
	if err := itemsFailed(n.set.commit(ctx, n.config), items...); err != nil {
		n.log.Warn("network: a removed network's bridge or rules are still there; will try again", "error", err)
	}
	return errors.Join(errs...)
}

// maxUsersNamed bounds how many containers an error names.
const maxUsersNamed = 5

func (n *Networks) describeUsers(w *netw) string {
	var l []string
	for id := range w.users {
		for _, e := range n.boxes[id].Endpoints {
			if e.NetworkID == w.Network.ID {
				l = append(l, "name:"+resource(id, e.Settings).Name+" id:"+id[:min(12, len(id))])
			}
		}
	}
	slices.Sort(l)
	if len(l) > maxUsersNamed {
		l = append(l[:maxUsersNamed], "…")
	}
	return strings.Join(l, ", ")
}

// Prune removes the networks that users made and nobody is in, but for
// configuration networks and the gateway network: what users set in them would be
// lost. Filters: label (and label!), until.
func (n *Networks) Prune(ctx context.Context, f api.Filters) (*dnet.PruneReport, error) {
	match, err := compileFilters(f, "label", "label!", "until")
	if err != nil {
		return nil, err
	}
	until, err := parseUntil(f["until"], n.o.Now())
	if err != nil {
		return nil, err
	}
	r := &dnet.PruneReport{NetworksDeleted: []string{}}
	var gone []*netw
	n.mu.Lock()
	for id, w := range n.nets {
		if w.ofSwarm() || w.Network.ConfigOnly || w.Network.Name == gatewayName || predefined(w.Network.Name) || len(w.users) > 0 || !match(w) || !until.IsZero() && w.Network.Created.After(until) {
			continue
		}
		delete(n.nets, id)
		gone = append(gone, w)
		r.NetworksDeleted = append(r.NetworksDeleted, w.Network.Name)
	}
	n.mu.Unlock()
	slices.Sort(r.NetworksDeleted)
	if len(gone) == 0 {
		return r, nil
	}
	return r, n.dispose(ctx, gone...)
}

// parseUntil reads a time or an age.
func parseUntil(l []string, now time.Time) (time.Time, error) {
	if len(l) == 0 {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(l[0]); err == nil && len(l) == 1 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, l[0]); err == nil && len(l) == 1 {
			return t, nil
		}
	}
	if secs, err := time.ParseDuration(l[0] + "s"); err == nil && len(l) == 1 {
		return time.Unix(0, 0).Add(secs), nil
	}
	return time.Time{}, api.Errorf(api.Invalid, "filter until=%v: must be one time (RFC 3339, Unix seconds) or duration such as 24h", l)
}

func predefined(name string) bool {
	return name == dnet.NetworkBridge || name == dnet.NetworkHost || name == dnet.NetworkNone || name == dnet.NetworkDefault
}
