// Package issuer is where nodes get their certificates: the gRPC services CA
// and NodeCA, and the signing of requests that wait in the store.
//
// A node without certificate joins with a token, which decides its role; names
// in certificates come from here and never from the request. Signing is done in
// the transaction that takes the request, so a node waits for one write only;
// requests that could not be signed then (another manager has the key) are
// signed by Run.
package issuer
