package agent

import (
	"context"
	"net/netip"
	"slices"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// Endpoint is a task on another node.
type Endpoint struct {
	Addresses []netip.Addr // one a family, in the overlay
	Node      netip.Addr   // where its node is reached
}

// Overlays takes what managers say of the overlays that the node has tasks in. It
// keeps what it was told last while no manager says anything. Methods are called
// from one goroutine and must not block.
type Overlays interface {
	// DataAddr is by which of its addresses other nodes reach this one; zero: as
	// the managers see it.
	DataAddr() netip.Addr
	// SetPort sets the UDP port of tunnels, the same on all nodes.
	SetPort(port uint16)
	// SetEndpoints says which endpoints of a network are on other nodes. They are
	// the callee's from then on.
	SetEndpoints(network string, all []Endpoint)
	// Forget says that the node has no task in a network any more.
	Forget(network string)
}

// endpoints is what managers have said, by network and task.
type endpoints map[string]map[string]Endpoint

// overlays hands on what the manager says of overlays. A manager that is not one
// of ours says nothing: then nodes can't reach each other's tasks, but all else works.
func (s *session) overlays(ctx context.Context) error {
	if s.cfg.Overlays == nil {
		return nil
	}
	req := &swarmpb.EndpointsRequest{}
	if a := s.cfg.Overlays.DataAddr(); a.IsValid() {
		req.DataAddr = a.String()
	}
	stream, err := s.overlayClient.Endpoints(ctx, req)
	for err == nil {
		var m *swarmpb.EndpointsUpdate
		if m, err = stream.Recv(); err == nil {
			err = s.endpoints.take(m, s.cfg.Overlays)
		}
	}
	if api.Is(err, api.Unimplemented) || grpcstatus.Code(err) == codes.Unimplemented {
		s.cfg.Log.Warn("the manager does not tell of endpoints: tasks of overlay networks on other nodes can't be reached")
		<-ctx.Done()
		return ctx.Err()
	}
	return ended(err)
}

// take applies an update and hands on what changed.
func (e endpoints) take(m *swarmpb.EndpointsUpdate, to Overlays) error {
	if port := m.GetDataPort(); port > 0 && port <= 65535 {
		to.SetPort(uint16(port))
	}
	named := map[string]bool{}
	for _, n := range m.GetNetworks() {
		id := n.GetNetworkId()
		if !validID(id) {
			return api.Errorf(api.Internal, "endpoints of a network with the impossible id %q", id)
		}
		if n.GetGone() {
			delete(e, id)
			to.Forget(id)
			continue
		}
		named[id] = true
		if n.GetWhole() || e[id] == nil {
			e[id] = map[string]Endpoint{}
		}
		for _, task := range n.GetRemove() {
			delete(e[id], task)
		}
		for _, p := range n.GetPut() {
			if x, ok := endpointFrom(p); ok {
				e[id][p.GetId()] = x
			}
		}
	}
	if m.GetComplete() {
		for id := range e {
			if !named[id] {
				delete(e, id)
				to.Forget(id)
			}
		}
	}
	for id := range named {
		all := make([]Endpoint, 0, len(e[id]))
		for _, x := range e[id] {
			all = append(all, x)
		}
		to.SetEndpoints(id, all)
	}
	return nil
}

// endpointFrom reads an endpoint; false if it is not one.
func endpointFrom(p *swarmpb.OverlayEndpoint) (Endpoint, bool) {
	var x Endpoint
	var err error
	if x.Node, err = netip.ParseAddr(p.GetNodeAddr()); err != nil {
		return x, false
	}
	for _, s := range p.GetAddresses() {
		a, err := netip.ParseAddr(s)
		if err != nil || slices.ContainsFunc(x.Addresses, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			return x, false
		}
		x.Addresses = append(x.Addresses, a)
	}
	return x, len(x.Addresses) > 0
}
