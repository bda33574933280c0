// Package api is the vocabulary that all of Legion shares: the objects of a
// cluster, the order of a task's states, identifiers and the classes of error.
//
// The objects are Docker's own (github.com/moby/moby/api/types/swarm), wrapped
// only where a cluster keeps state that Docker's API does not show:
// certificates, raft membership, key material, which version of a spec a task
// was made from.
//
// Every object is an immutable value once it is in the store: whoever wants to
// change one makes a shallow copy, replaces (never edits in place) the parts
// that differ, and writes the copy in a transaction. A task shares its spec by
// pointer with all tasks of the same service and spec version.
//
// The package has no goroutine, no clock, no disk and no network.
package api
