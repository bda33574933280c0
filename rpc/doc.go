// Package rpc is how Legion's nodes reach each other: gRPC over mutual TLS on
// one port, who may call what, and how errors travel.
//
// Who a caller is comes from its certificate and from nothing else; what it may
// call stands in one table (access.go). Certificates and roots can be replaced
// while connections stand (Credentials).
package rpc
