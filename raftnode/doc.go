// Package raftnode keeps the cluster's log. It drives etcd's raft, makes durable
// what raft wants durable in a write-ahead log of its own, and hands what is
// committed to the Applier (package store), in the log's order.
//
// One goroutine (Run) owns raft and the log. All proposals that arrive while it
// waits for the disk go into the next write together, and one fdatasync serves
// them all. A proposal returns once its entry is on a quorum's disks and applied
// here.
//
// A disk that is full makes the member unavailable until there is space; a
// failed fsync ends Run, since what is on the disk is then unknown until it is
// read again. Damage that a crash can't explain is refused at Open.
//
// See design/raft.md.
package raftnode
