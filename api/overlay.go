package api

import "net/netip"

// OverlayUpdate is what managers tell a node of overlay networks.
type OverlayUpdate struct {
	// Complete: networks that are not among Networks are none of the node's.
	Complete bool
	// DataPort is the swarm's UDP port for tunnels; 0: not said.
	DataPort uint16
	// Keys of encrypted networks; nil: as told before.
	Keys     *OverlayKeys
	Networks []NetworkUpdate
}

// NetworkUpdate tells of one network.
type NetworkUpdate struct {
	ID string
	// Gone: the node has no part in it any more.
	Gone bool
	// Whole: what is not put is not there.
	Whole bool
	// Put are endpoints that are new or have changed, Remove the ids of those that
	// are gone; one that is not known may be named. So with services.
	Put            []OverlayEndpoint
	Remove         []string
	PutServices    []OverlayService
	RemoveServices []string
	// Ingress is the network itself if it is that of the routing mesh, and Own are
	// the node's own addresses there, one a family, with the length of their
	// subnet. Nil: as told before.
	Ingress *Network
	Own     []netip.Prefix
}

// OverlayEndpoint is a task or container in a network, or a node in the ingress
// network. Never changed once it is handed on.
type OverlayEndpoint struct {
	// ID is the task's, or the node's.
	ID        string
	Addresses []netip.Addr // one a family
	// Node is where its node is reached; zero: it is the callee's own.
	Node netip.Addr
	// Service is its service's id; empty for containers that are of none.
	Service string
	// Name of the task or container; empty before it starts and once it is to stop.
	Name string
	// Aliases are further names of this endpoint alone.
	Aliases []string
	// Serving: it is to be given new work. Others are reached, but not chosen.
	Serving bool
}

// OverlayService is a service as it is known in one network. Never changed once it
// is handed on.
type OverlayService struct {
	ID, Name string
	// VirtualAddresses, one a family; none with dnsrr.
	VirtualAddresses []netip.Addr
	Aliases          []string
	// Ports of the routing mesh, in the ingress network alone.
	Ports []OverlayPort
	// Balance is how one of its tasks is chosen.
	Balance Balance
}

// OverlayPort is a port that every node answers for.
type OverlayPort struct {
	Protocol          string
	Published, Target uint16
	// On are addresses, prefixes or devices of nodes that it is restricted to.
	On []string
}

// OverlayKeys protect what is sent between nodes in encrypted networks.
type OverlayKeys struct {
	Keys []OverlayKey
	Send uint32 // the id of the one to send with
}

// OverlayKey is one of them.
type OverlayKey struct {
	ID     uint32
	Secret [32]byte
}
