// Package presence is the leader's watch over nodes that no manager watches.
//
// Each manager sees for itself to the nodes that it serves (package dispatcher).
// When a manager is gone, nobody does so for its nodes, and for itself: the
// leader then gives them the grace period to open a session with another manager,
// and says that those are down which did not. It also gives up the tasks of
// nodes that are down for a day.
package presence
