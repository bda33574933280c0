package orchestrator_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

// TestPolicyIsKept: whatever fails and completes, and however the service is updated
// meanwhile, no version has more tasks one after the other in a slot than the restart
// policy allows; and there is an end to it.
func TestPolicyIsKept(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.node("n1", nil)
		w.node("n2", nil)
		w.setService("web", func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(rapid.IntRange(1, 3).Draw(rt, "replicas")))}
			r := s.TaskTemplate.RestartPolicy
			r.Condition = rapid.SampledFrom([]swarm.RestartPolicyCondition{"any", "none", "on-failure"}).Draw(rt, "condition")
			r.MaxAttempts = new(uint64(rapid.IntRange(1, 3).Draw(rt, "attempts")))
			r.Delay = new(time.Duration(rapid.IntRange(0, 2).Draw(rt, "delay")) * time.Second)
			s.UpdateConfig.Parallelism = uint64(rapid.IntRange(0, 2).Draw(rt, "parallelism"))
			s.UpdateConfig.FailureAction = rapid.SampledFrom([]swarm.FailureAction{"pause", "continue", "rollback"}).Draw(rt, "action")
			s.UpdateConfig.MaxFailureRatio = float32(rapid.IntRange(0, 2).Draw(rt, "ratio")) / 2
			s.UpdateConfig.Order = rapid.SampledFrom([]swarm.UpdateOrder{"stop-first", "start-first"}).Draw(rt, "order")
			s.RollbackConfig.Order = s.UpdateConfig.Order
		})
		w.broken["b"], w.broken["c"] = "task: non-zero exit (1)", "no such image"
		for range 60 {
			w.now = w.now.Add(time.Millisecond) // what is made later is younger
			switch rapid.SampledFrom([]byte("PPSttttttwue")).Draw(rt, "step") {
			case 'P':
				w.plan()
			case 'S':
				w.place()
			case 't':
				if tasks := w.sorted(); len(tasks) > 0 {
					w.step(rapid.SampledFrom(tasks).Draw(rt, "task"))
				}
			case 'w':
				w.pass(time.Duration(rapid.IntRange(1, 6000).Draw(rt, "ms")) * time.Millisecond)
			case 'u':
				w.setService("web", func(s *swarm.ServiceSpec) {
					s.TaskTemplate.ContainerSpec.Image = rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "image")
				})
			case 'e':
				if tasks := w.sorted(); len(tasks) > 0 {
					if t := rapid.SampledFrom(tasks).Draw(rt, "task"); t.NodeID != "" && !api.Final(t.Status.State) {
						w.status(t.ID, rapid.SampledFrom([]swarm.TaskState{"failed", "complete"}).Draw(rt, "end"), "")
					}
				}
			}
			if what := w.beyondPolicy(); what != "" {
				rt.Fatal(what)
			}
		}
		w.pass(time.Hour) // it comes to rest at each moment
		if what := w.beyondPolicy(); what != "" {
			rt.Fatal(what)
		}
	})
}

// beyondPolicy says which task should not have been made. Tasks follow each other here
// only because of updates, or because they ended by themselves.
func (w *world) beyondPolicy() string {
	for i := range 3 {
		slot := fmt.Sprintf("web.%d", i+1)
		row := 0 // of tasks of a version that follow from the first; one that is forgotten ends it
		for n := 1; n < w.names[slot]; n++ {
			was, is := w.tasks[slot+letters(n-1)], w.tasks[slot+letters(n)]
			if was == nil || is == nil || was.SpecVersion != is.SpecVersion {
				row = 0
				continue
			}
			row++
			r := is.Spec.RestartPolicy
			switch {
			case r.Condition == "none", r.Condition == "on-failure" && was.Status.State == swarm.TaskStateComplete:
				return fmt.Sprintf("%s came after %s, which is %s, with condition %s", is.ID, was.ID, was.Status.State, r.Condition)
			case row > int(*r.MaxAttempts):
				return fmt.Sprintf("%s is attempt %d of version %d, not %d at most", is.ID, row, is.SpecVersion, *r.MaxAttempts)
			}
		}
	}
	return ""
}
