package enginetest

import (
	"context"
	"net/netip"
	"sync"

	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Networks is a fake engine.Networks: containers' places are values in memory.
// The networks are bridge, host, none, and any whose name begins with "net".
// Safe for concurrent use.
type Networks struct {
	mu    sync.Mutex
	boxes map[string]*engine.Sandbox
	kept  []string
	next  byte

	// Namespace is the path given to containers; it need not exist for a fake
	// runtime.
	Namespace string
}

var _ engine.Networks = (*Networks)(nil)

// NewNetworks returns a node without containers.
func NewNetworks(namespace string) *Networks {
	return &Networks{boxes: make(map[string]*engine.Sandbox), Namespace: namespace}
}

func known(name string) bool {
	return name == network.NetworkBridge || name == network.NetworkHost || name == network.NetworkNone || len(name) > 3 && name[:3] == "net"
}

func (n *Networks) endpoint(name string, e *network.EndpointSettings) (*network.EndpointSettings, error) {
	if !known(name) {
		return nil, api.Errorf(api.NotFound, "network %s not found", name)
	}
	out := e.Copy()
	if out == nil {
		out = &network.EndpointSettings{}
	}
	out.NetworkID, out.EndpointID = "id-of-"+name, "endpoint"
	if name != network.NetworkHost && name != network.NetworkNone {
		n.next++
		out.IPAddress, out.IPPrefixLen, out.Gateway = netip.AddrFrom4([4]byte{172, 30, 0, n.next}), 16, netip.MustParseAddr("172.30.0.1")
	}
	return out, nil
}

// Join implements engine.Networks.
func (n *Networks) Join(_ context.Context, id string, endpoints map[string]*network.EndpointSettings, ports network.PortMap) (*engine.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if b := n.boxes[id]; b != nil {
		return b, nil
	}
	b := &engine.Sandbox{Path: n.Namespace, Endpoints: map[string]*network.EndpointSettings{}, Ports: ports}
	for name, e := range endpoints {
		out, err := n.endpoint(name, e)
		if err != nil {
			return nil, err
		}
		if name == network.NetworkHost {
			b.Path = ""
		}
		b.Endpoints[name] = out
	}
	n.boxes[id] = b
	return b, nil
}

// Leave implements engine.Networks.
func (n *Networks) Leave(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.boxes, id)
	return nil
}

// Connect implements engine.Networks.
func (n *Networks) Connect(_ context.Context, id, net string, e *network.EndpointSettings) (*network.EndpointSettings, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.boxes[id]
	if b == nil {
		return nil, api.Errorf(api.NotFound, "container %s has no network: it isn't running", id)
	}
	out, err := n.endpoint(net, e)
	if err != nil {
		return nil, err
	}
	b.Endpoints[net] = out
	return out, nil
}

// Disconnect implements engine.Networks.
func (n *Networks) Disconnect(_ context.Context, id, net string, force bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.boxes[id]
	if b == nil || b.Endpoints[net] == nil {
		if force {
			return nil
		}
		return api.Errorf(api.NotFound, "container %s is not in network %s", id, net)
	}
	delete(b.Endpoints, net)
	return nil
}

// Keep implements engine.Networks.
func (n *Networks) Keep(_ context.Context, ids []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kept = ids
	keep := make(map[string]*engine.Sandbox)
	for _, id := range ids {
		if b := n.boxes[id]; b != nil {
			keep[id] = b
		}
	}
	n.boxes = keep
	return nil
}

// Joined lists the containers that have a place.
func (n *Networks) Joined() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for id := range n.boxes {
		ids = append(ids, id)
	}
	return ids
}
