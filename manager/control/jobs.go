package control

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// validateJob checks what holds only for jobs. Restart condition "any" is taken
// as "on-failure": clients send it with any other part of a restart policy.
func validateJob(s *swarm.ServiceSpec) error {
	if s.Mode.ReplicatedJob == nil && s.Mode.GlobalJob == nil {
		return nil
	}
	for field, u := range map[string]*swarm.UpdateConfig{"UpdateConfig": s.UpdateConfig, "RollbackConfig": s.RollbackConfig} {
		if u != nil {
			return invalid("%s: update and rollback configuration is not supported for jobs", field)
		}
	}
	j := Complete(s).Mode.ReplicatedJob
	switch {
	case j == nil:
	case *j.TotalCompletions > maxReplicas:
		return invalid("Mode.ReplicatedJob.TotalCompletions: Total completed jobs must not be negative, and at most %d, not %d", maxReplicas, *j.TotalCompletions)
	case *j.MaxConcurrent > maxReplicas:
		return invalid("Mode.ReplicatedJob.MaxConcurrent: Maximum concurrent jobs must not be negative, and at most %d, not %d", maxReplicas, *j.MaxConcurrent)
	case *j.MaxConcurrent == 0 && *j.TotalCompletions > 0:
		return invalid("Mode.ReplicatedJob.MaxConcurrent: with 0 the job's %d tasks would never run: want 1 or more", *j.TotalCompletions)
	}
	return nil
}

// firstIteration is the status of a job that was just made; nil for services.
func firstIteration(s *swarm.ServiceSpec, now time.Time) *swarm.JobStatus {
	if s.Mode.ReplicatedJob == nil && s.Mode.GlobalJob == nil {
		return nil
	}
	return &swarm.JobStatus{LastExecution: now}
}

// nextIteration is the status of a service that is updated: a job runs again
// whenever its spec changes.
func nextIteration(old, n *api.Service, now time.Time) *swarm.JobStatus {
	if !old.Job() || old.JobStatus == nil || api.SameService(&old.Spec, &n.Spec) {
		return old.JobStatus
	}
	return &swarm.JobStatus{JobIteration: swarm.Version{Index: old.JobStatus.JobIteration.Index + 1}, LastExecution: now}
}

// onlyStopped reports whether an update only stops or starts the service: then
// it is no version of its own, and a job goes on where it was.
func onlyStopped(old, n *api.Service) bool {
	return old.Stopped() != n.Stopped() && api.SameService(&old.Spec, &n.Spec)
}

// stoppedOrStarted is a service after that. A start makes all tasks of the
// present spec: of an update that is over, or paused, there is nothing left to
// say, and clients would take its status for the start's.
func stoppedOrStarted(n *api.Service) *api.Service {
	if st := n.UpdateStatus; !n.Stopped() && st != nil && st.State != swarm.UpdateStateUpdating && st.State != swarm.UpdateStateRollbackStarted {
		n.UpdateStatus = nil
	}
	return n
}
