package orchestrator_test

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// TestUpdateCountsWhatNeverRan: a slot whose task had no node yet when it was replaced
// counts as under way until the new one runs. The simulation found an update that took
// down the only task of a service that ran, when another update had begun before the
// tasks of the last one were up (seed 28).
func TestUpdateCountsWhatNeverRan(t *testing.T) {
	w := newWorld(t)
	w.node("n1", nil)
	w.setService("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(2))} })
	w.plan()
	w.change("web.1a", func(t *api.Task) { t.NodeID, t.Status.State = "n1", swarm.TaskStateRunning })
	w.setService("web", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "b" })
	for range 3 {
		w.plan()
	}
	if got := w.tasks["web.1a"].DesiredState; got != swarm.TaskStateRunning {
		t.Errorf("the task that runs is to be %s while the first that was replaced is %s", got, w.tasks["web.2b"].Status.State)
	}
	w.settle()
	if got := w.tasks["web.1b"]; got == nil || got.Status.State != swarm.TaskStateRunning {
		t.Errorf("the update went no further: %+v", w.tasks)
	}
}
