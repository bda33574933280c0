// Package roles keeps the members of the raft log in step with the roles that
// users give the nodes: it takes managers in, gives them a vote once they have
// caught up, and takes them out before they become workers. A quorum is never
// given away: raft refuses, and the loop tries again later.
package roles
