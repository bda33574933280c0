// Package wire tests what is between managers and nodes as one piece: joining,
// sessions, assignments, statuses and logs, over real TLS on loopback, with a
// store in memory and fake executors.
package wire
