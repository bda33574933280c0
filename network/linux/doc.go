// Package linux is the network.Dataplane of Linux: bridges and veth pairs by
// netlink, named network namespaces, packet filter rules by nftables in a table
// of its own, and sockets that hold published ports. What carries encrypted overlays
// and answers names is a process of its own, see package keeper.
//
// What it makes it can find again: devices carry an alias with the owner's
// name, namespaces are files in one folder. So a daemon that starts anew adopts
// what is there, and two daemons on one host leave each other's things alone.
package linux
