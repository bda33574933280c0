// Package raftnode keeps the cluster's log: it drives etcd's raft, writes what
// raft wants durable to a write-ahead log of its own, and applies what is
// committed.
//
// One goroutine (Run) owns raft, the log file and the applier. All proposals
// that arrive while an fsync is under way go into the next one together. An
// entry is acknowledged when it is on a quorum's disks and applied here.
//
// A failed write or fsync ends Run: what is on disk is then unknown to us, and
// only reading it again at the next start can tell. See design/raft.md.
package raftnode
