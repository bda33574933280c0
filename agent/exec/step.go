package exec

import (
	"context"
	"errors"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Operation is what is to be done for a task next.
type Operation uint8

// The operations. Advance needs no controller: the status that came with it is
// the new one. Rest means that the task has ended, or that it waits for its
// desired state to change.
const (
	Rest Operation = iota
	Advance
	Prepare
	Start
	Wait
	Shutdown
)

func (o Operation) String() string {
	switch o {
	case Advance:
		return "advance"
	case Prepare:
		return "prepare"
	case Start:
		return "start"
	case Wait:
		return "wait"
	case Shutdown:
		return "shutdown"
	case Rest:
	}
	return "rest"
}

// Next decides what to do for a task with this status and desired state. The
// status it returns differs from the given one only with Advance. It is the
// whole of a task's life on a node:
//
//	ASSIGNED → ACCEPTED → PREPARING → READY → STARTING → RUNNING → COMPLETE
//
// ACCEPTED and READY are gates, passed only when the desired state is beyond
// them; a desired state of SHUTDOWN or REMOVE ends the task wherever it is.
func Next(s swarm.TaskStatus, desired swarm.TaskState, now time.Time) (Operation, swarm.TaskStatus) {
	if api.Final(s.State) {
		return Rest, s
	}
	if api.Rank(desired) >= api.Rank(swarm.TaskStateShutdown) {
		return Shutdown, s
	}
	switch s.State {
	case swarm.TaskStatePreparing:
		return Prepare, s
	case swarm.TaskStateStarting:
		return Start, s
	case swarm.TaskStateRunning:
		return Wait, s
	}
	if api.Rank(s.State) >= api.Rank(desired) {
		return Rest, s
	}
	switch s.State {
	case swarm.TaskStateAccepted:
		return Advance, move(s, swarm.TaskStatePreparing, "preparing", now)
	case swarm.TaskStateReady:
		return Advance, move(s, swarm.TaskStateStarting, "starting", now)
	}
	return Advance, move(s, swarm.TaskStateAccepted, "accepted", now)
}

// Outcome is what came of an operation.
type Outcome struct {
	Status swarm.TaskStatus
	// Retry is set when the operation is to be tried again after a while.
	Retry bool
	// Stop is set when the task ended in the manager's eyes while something of
	// it may still run: it is to be terminated before the status is reported.
	Stop bool
}

// Done returns what becomes of a task's status after the operation returned err.
// An operation that was interrupted, because its context ended, changes nothing.
func Done(s swarm.TaskStatus, op Operation, err error, now time.Time) Outcome {
	if err == nil {
		return Outcome{Status: succeeded(s, op, now)}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Outcome{Status: s, Retry: errors.Is(err, context.DeadlineExceeded)}
	}
	failed := s
	failed.Err = err.Error()
	failed.Timestamp = now
	// A task that could not be stopped still runs: it must not be replaced.
	if errors.Is(err, ErrTemporary) || op == Shutdown {
		if failed.Err == s.Err {
			failed = s // nothing new to tell
		}
		return Outcome{Status: failed, Retry: true}
	}
	failed.State = swarm.TaskStateFailed
	if errors.Is(err, ErrRejected) || api.Rank(s.State) < api.Rank(swarm.TaskStateStarting) {
		failed.State = swarm.TaskStateRejected
	}
	var exit *ExitError
	return Outcome{Status: failed, Stop: !errors.As(err, &exit)}
}

func succeeded(s swarm.TaskStatus, op Operation, now time.Time) swarm.TaskStatus {
	switch op {
	case Prepare:
		return move(s, swarm.TaskStateReady, "prepared", now)
	case Start:
		return move(s, swarm.TaskStateRunning, "started", now)
	case Wait:
		return move(s, swarm.TaskStateComplete, "finished", now)
	case Shutdown:
		return move(s, swarm.TaskStateShutdown, "shutdown", now)
	case Rest, Advance:
	}
	return s
}

func move(s swarm.TaskStatus, to swarm.TaskState, message string, now time.Time) swarm.TaskStatus {
	s.State, s.Message, s.Err, s.Timestamp = to, message, "", now
	return s
}
