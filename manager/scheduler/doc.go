// Package scheduler decides on which node a task runs.
//
// State mirrors the nodes with what is reserved and running on them, and
// Schedule is pure: groups of like tasks in, nodes out. Filters say which nodes
// a task may run on, and explain why not; among the rest the tasks of a service
// are spread. See design/scheduler.md.
package scheduler
