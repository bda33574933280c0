// Package dns is the resolver that containers have at 127.0.0.11: it answers
// for names of their networks and forwards all else.
//
// What is known is a value (network.Zone, network.Resolver) and looking a name
// up in it is a pure function. A Hub has what the servers of a node share, a
// Server serves the sockets of one sandbox. The wire format is written here by
// hand: one question, three kinds of record, nothing allocated; what a forwarder
// answers is passed on as it came.
package dns
