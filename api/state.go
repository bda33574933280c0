package api

import "github.com/moby/moby/api/types/swarm"

// Rank orders task states: a task's state only ever moves to a higher rank.
// Unknown states rank -1. The numbers are those of SwarmKit's TaskState, so
// they are also what goes over the wire.
func Rank(s swarm.TaskState) int {
	switch s {
	case swarm.TaskStateNew:
		return 0
	case swarm.TaskStatePending:
		return 64
	case swarm.TaskStateAssigned:
		return 192
	case swarm.TaskStateAccepted:
		return 256
	case swarm.TaskStatePreparing:
		return 320
	case swarm.TaskStateReady:
		return 384
	case swarm.TaskStateStarting:
		return 448
	case swarm.TaskStateRunning:
		return 512
	case swarm.TaskStateComplete:
		return 576
	case swarm.TaskStateShutdown:
		return 640
	case swarm.TaskStateFailed:
		return 704
	case swarm.TaskStateRejected:
		return 768
	case swarm.TaskStateRemove:
		return 800
	case swarm.TaskStateOrphaned:
		return 832
	}
	return -1
}

// StateOfRank is the inverse of Rank. It returns false for a number that is no
// state's rank.
func StateOfRank(rank int) (swarm.TaskState, bool) {
	for _, s := range [...]swarm.TaskState{
		swarm.TaskStateNew, swarm.TaskStatePending, swarm.TaskStateAssigned,
		swarm.TaskStateAccepted, swarm.TaskStatePreparing, swarm.TaskStateReady,
		swarm.TaskStateStarting, swarm.TaskStateRunning, swarm.TaskStateComplete,
		swarm.TaskStateShutdown, swarm.TaskStateFailed, swarm.TaskStateRejected,
		swarm.TaskStateRemove, swarm.TaskStateOrphaned,
	} {
		if Rank(s) == rank {
			return s, true
		}
	}
	return "", false
}

// ToldToEnd reports whether a task with this desired state shall end, or be gone.
// The others are meant to run, now, soon, or until they complete.
func ToldToEnd(desired swarm.TaskState) bool { return Rank(desired) >= Rank(swarm.TaskStateShutdown) }

// Final reports whether a task in this state has ended and will not change
// any more.
func Final(s swarm.TaskState) bool { return Rank(s) > Rank(swarm.TaskStateRunning) }
