// Package network keeps this node's network: it decides what it should be (a
// Config: bridges, containers' namespaces, published ports) and has a
// Dataplane make it so.
//
// Networks is the actor. It owns the node-local networks and their addresses,
// answers the engine (Join, Leave, Connect, Disconnect, Keep) and the API
// (Create, List, Inspect, Remove, Prune), and repairs drift in Run. Nothing in
// this package touches the kernel; that is package network/linux.
package network
