package enginetest

import (
	"context"
	"net/netip"
	"slices"
	"strings"
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
	dns   map[string][]netip.Addr
	next  byte

	// Namespace is the path given to containers; it need not exist for a fake
	// runtime.
	Namespace string
}

var _ engine.Networks = (*Networks)(nil)

// NewNetworks returns a node without containers.
func NewNetworks(namespace string) *Networks {
	return &Networks{boxes: make(map[string]*engine.Sandbox), dns: make(map[string][]netip.Addr), Namespace: namespace}
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
		if out.Gateway.IsValid() {
			b.HostGateway = []netip.Addr{out.Gateway}
		}
		if len(out.DNSNames) > 0 {
			b.DNS = []netip.Addr{netip.MustParseAddr("127.0.0.11")}
		}
	}
	n.boxes[id] = b
	return b, nil
}

// Known implements engine.Networks: a network's id is "id-of-" and its name, its
// driver "driver-of-" and its name.
func (n *Networks) Known(net string) (network.Network, bool) {
	name := strings.TrimPrefix(net, "id-of-")
	return network.Network{Name: name, ID: "id-of-" + name, Driver: "driver-of-" + name}, known(name)
}

// CheckAddresses implements engine.Networks: subnets are 172.30.0.0/16.
func (n *Networks) CheckAddresses(net string, asked *network.EndpointIPAMConfig) error {
	if asked != nil && asked.IPv4Address.IsValid() && !netip.MustParsePrefix("172.30.0.0/16").Contains(asked.IPv4Address) {
		return api.Errorf(api.Invalid, "network %s: address %s is not in its subnet", net, asked.IPv4Address)
	}
	return nil
}

// SetDNS implements engine.Networks.
func (n *Networks) SetDNS(id string, servers []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dns[id] = servers
}

// DNS returns what SetDNS said last of a container.
func (n *Networks) DNS(id string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dns[id]
}

// Rename implements engine.Networks.
func (n *Networks) Rename(_ context.Context, id, from, to string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.boxes[id]
	if b == nil {
		return nil
	}
	for _, e := range b.Endpoints {
		if i := slices.Index(e.DNSNames, from); i >= 0 {
			e.DNSNames = append([]string{}, e.DNSNames...)
			e.DNSNames[i] = to
		}
	}
	return nil
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

// Published implements engine.Networks: ports are published as they were asked for.
func (n *Networks) Published(id string) network.PortMap {
	n.mu.Lock()
	defer n.mu.Unlock()
	if b := n.boxes[id]; b != nil {
		return b.Ports
	}
	return nil
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
