// Package store keeps the objects of a cluster: in memory, indexed, watched,
// and changed only through a log that every manager applies in the same order.
//
// View is an immutable snapshot and never blocks anybody. Update runs a
// function on a snapshot, and proposes what it wrote together with the versions
// that it read; Apply, on every manager, checks these versions and takes all of
// the change or nothing. No lock is held while a proposal is under way, so any
// number of updates can be in flight. Watch gives the changes from the instant
// of a snapshot on, bounded.
//
// See design/store.md.
package store
