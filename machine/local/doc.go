// Package local is the driver of machines made on this computer: each is a set
// of namespaces (mount, net, uts, ipc, pid, cgroup) with cgroups of its own, an
// address on a fabric that joins them all, a folder for its data and a Legion
// daemon, under an init that is process 1 there. The host's file system is
// shared, except for /run, /tmp and what a machine must have of its own.
//
// What a machine and the fabric should be is worked out as values (plan.go,
// address.go, cuts.go) and then made so. See design/machine.md.
package local
