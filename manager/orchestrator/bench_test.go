package orchestrator_test

import (
	"fmt"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
)

// benchInput is a service at rest, every slot with some history.
func benchInput(b *testing.B, replicas, history int) orchestrator.Input {
	w := newWorld(b)
	for i := range 100 {
		w.node(fmt.Sprint("n", i), nil)
	}
	w.setService("web", func(s *swarm.ServiceSpec) {
		s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
	})
	s := w.services["web"]
	spec := s.TaskSpec()
	for i := range replicas {
		for j := range history + 1 {
			t := &api.Task{
				ID: fmt.Sprintf("web.%d.%d", i, j), ServiceID: "web", Slot: i + 1, NodeID: fmt.Sprint("n", i%100), SpecVersion: 1, Spec: spec,
				DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: swarm.TaskStateRunning},
			}
			if j > 0 {
				t.DesiredState, t.Status.State = swarm.TaskStateShutdown, swarm.TaskStateFailed
				t.CreatedAt = w.now
			} else {
				t.CreatedAt = w.now.Add(1)
			}
			w.tasks[t.ID] = t
		}
	}
	return w.input("web")
}

// BenchmarkPlan is a plan that finds nothing to do.
func BenchmarkPlan(b *testing.B) {
	for _, c := range [][2]int{{3, 0}, {100, 4}, {1000, 0}, {10_000, 0}, {10_000, 4}, {100_000, 0}, {1_000_000, 0}} {
		b.Run(fmt.Sprintf("replicas=%d/history=%d", c[0], c[1]), func(b *testing.B) {
			in := benchInput(b, c[0], c[1])
			b.ReportAllocs()
			for b.Loop() {
				if out := orchestrator.Plan(in); len(out.Desired)+len(out.Create) > 0 {
					b.Fatal(out)
				}
			}
		})
	}
}

// BenchmarkPlanNew makes a service's tasks.
func BenchmarkPlanNew(b *testing.B) {
	in := benchInput(b, 10_000, 0)
	in.Tasks, in.NewID = nil, api.NewID
	for b.Loop() {
		orchestrator.Plan(in)
	}
}

// BenchmarkJob is a plan of a job of 10,000 completions that is half done.
func BenchmarkJob(b *testing.B) {
	const n = 10_000
	w := newWorld(b)
	for i := range 10 {
		w.node(fmt.Sprint("n", i), nil)
	}
	w.setService("job", func(s *swarm.ServiceSpec) {
		s.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: new(uint64(100)), TotalCompletions: new(uint64(n))}
	})
	in := w.input("job")
	spec := w.services["job"].TaskSpec()
	for i := range n/2 + 100 {
		t := &api.Task{ID: fmt.Sprint("t", i), ServiceID: "job", Slot: i, NodeID: "n1", SpecVersion: 1, Spec: spec, DesiredState: swarm.TaskStateComplete, JobIteration: &swarm.Version{}}
		t.Status.State = swarm.TaskStateComplete
		if i >= n/2 {
			t.Status.State = swarm.TaskStateRunning
		}
		in.Tasks = append(in.Tasks, t)
	}
	for b.Loop() {
		if out := orchestrator.Plan(in); len(out.Create)+len(out.Desired) > 0 {
			b.Fatal("it is as it should be")
		}
	}
}

// BenchmarkPlanSlots is the plan for a task that has failed, in a service of any size.
func BenchmarkPlanSlots(b *testing.B) {
	in := benchInput(b, 1, 4)
	var failed api.Task
	for i, t := range in.Tasks {
		if t.DesiredState == swarm.TaskStateRunning {
			failed = *t
			failed.Status.State = swarm.TaskStateFailed
			in.Tasks[i] = &failed
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if out, ok := orchestrator.PlanSlots(in); !ok || len(out.Create) != 1 {
			b.Fatal(out)
		}
	}
}
