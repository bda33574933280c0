// Package scheduler decides on which node a task runs.
//
// State mirrors the nodes with what is reserved and running on them, and
// Schedule is pure: tasks in, nodes out. Filters say which nodes a task may run
// on, and explain why not; among the rest the tasks of a service are spread.
// Loop keeps a State up to date with the store. See design/scheduler.md.
package scheduler
