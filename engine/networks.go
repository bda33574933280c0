package engine

import (
	"context"
	"net/netip"

	"github.com/moby/moby/api/types/network"
)

// Networks gives containers their network namespaces. Package node implements
// it on package network; engine and network do not know each other.
type Networks interface {
	// Join makes the container's namespace with an interface in each network
	// that is wanted. Idempotent for a container id. Which endpoints: names or
	// ids of networks to settings; "bridge" for the default one. An empty map
	// gives a namespace with loopback only. IPAddress and GlobalIPv6Address are those that
	// the container had last in the network: it gets them again if they are free.
	Join(ctx context.Context, containerID string, endpoints map[string]*network.EndpointSettings, ports network.PortMap) (*Sandbox, error)
	// CheckAddresses refuses addresses that a container can never have in a network
	// that is known here, by name or id.
	CheckAddresses(net string, asked *network.EndpointIPAMConfig) error
	// SetDNS says which servers a container wants to have asked for names that its
	// networks don't know, for the next Join. Empty: those of the host.
	SetDNS(containerID string, servers []netip.Addr)
	// Rename gives a container that has joined another name in its networks.
	Rename(ctx context.Context, containerID, from, to string) error
	// Leave removes the namespace and its interfaces. Unknown ids are no error.
	Leave(ctx context.Context, containerID string) error
	// Connect and Disconnect change a running container's networks.
	Connect(ctx context.Context, containerID, net string, e *network.EndpointSettings) (*network.EndpointSettings, error)
	Disconnect(ctx context.Context, containerID, net string, force bool) error
	// Published returns a container's ports as they are published now, which its networks
	// decide on; nil: it has not joined.
	Published(containerID string) network.PortMap
	// Known returns a network, by name or id, if it is known on this node.
	Known(net string) (_ network.Network, known bool)
	// Keep tells at start which containers still exist; all else is removed.
	Keep(ctx context.Context, containerIDs []string) error
}

// Sandbox is a container's network namespace.
type Sandbox struct {
	// Path of the namespace, for the OCI spec; also NetworkSettings.SandboxKey.
	Path string
	// Endpoints by network name, filled in: addresses, gateway, MAC, ids.
	Endpoints map[string]*network.EndpointSettings
	Ports     network.PortMap
	// DNS is set where the container's resolver answers; that is what goes in
	// resolv.conf then. Empty: the container asks servers itself.
	DNS []netip.Addr
	// HostGateway is where the container reaches its host; empty: nowhere.
	HostGateway []netip.Addr
}
