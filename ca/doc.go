// Package ca is a swarm's certificate authority as pure functions: roots, node
// certificates, join tokens, when to renew, and the files in which a node keeps
// its identity. It reaches no network and no store.
//
// The forms are Docker's, so that its nodes can join: ECDSA P-256, a root named
// swarm-ca, leaves with CN = node id, OU = role and O = cluster id, tokens
// SWMTKN-1-DIGEST-SECRET.
package ca
