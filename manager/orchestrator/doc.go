// Package orchestrator decides which tasks there should be: it makes, replaces,
// updates and removes the tasks of services.
//
// Plan is pure: one service with its tasks and the nodes in, changes out, with
// the time at which to look again. It needs no memory: all that it decides by
// is in the tasks, so a new leader decides as the old one did. Loop keeps plans
// up to date with the store. See design/orchestrator.md.
package orchestrator
