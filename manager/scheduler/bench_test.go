package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// The cases are SwarmKit's own, with tasks that belong together and with tasks
// that have nothing in common but their needs.
func cases() [][2]int {
	return [][2]int{{1000, 1000}, {1000, 10_000}, {1000, 100_000}, {100_000, 1000}}
}

func benchNode(i int) *api.Node {
	n := &api.Node{Role: swarm.NodeRoleWorker}
	n.ID = fmt.Sprintf("node%020d", i)
	n.Spec.Availability, n.Status.State = swarm.NodeAvailabilityActive, swarm.NodeStateReady
	n.Description.Hostname = n.ID
	return n
}

func benchTask(i int, spec *api.TaskSpec, together bool) *api.Task {
	t := &api.Task{
		ID: fmt.Sprintf("task%020d", i), ServiceID: "service", SpecVersion: 1, Slot: i, Spec: spec,
		DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: swarm.TaskStatePending},
	}
	if !together {
		t.ServiceID = "service" + t.ID
	}
	return t
}

func BenchmarkSchedule(b *testing.B) {
	for _, c := range cases() {
		for _, together := range []bool{true, false} {
			b.Run(fmt.Sprintf("nodes=%d/tasks=%d/together=%v", c[0], c[1], together), func(b *testing.B) {
				tasks := benchTasks(c[1], together)
				for b.Loop() {
					b.StopTimer()
					s := New()
					for i := range c[0] {
						s.SetNode(benchNode(i))
					}
					b.StartTimer()
					for rest := tasks; len(rest) > 0; {
						n := min(len(rest), maxBatch)
						s.Schedule(rest[:n], time.Time{})
						rest = rest[n:]
					}
				}
			})
		}
	}
}

func benchTasks(n int, together bool) []*api.Task {
	spec := &api.TaskSpec{}
	tasks := make([]*api.Task, n)
	for i := range tasks {
		tasks[i] = benchTask(i, spec, together)
	}
	return tasks
}

// BenchmarkLoop has the store in the loop: tasks and nodes are in it, the time
// is from the scheduler's start until a watcher has seen the last assignment.
func BenchmarkLoop(b *testing.B) {
	for _, c := range cases() {
		for _, together := range []bool{true, false} {
			b.Run(fmt.Sprintf("nodes=%d/tasks=%d/together=%v", c[0], c[1], together), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					s := filled(b, c[0], benchTasks(c[1], together))
					_, w := s.Watch(store.KindTask)
					ctx, cancel := context.WithCancel(b.Context())
					ended := make(chan error, 1)
					l := &Loop{Store: s, Log: slog.New(slog.DiscardHandler)}
					b.StartTimer()
					go func() { ended <- l.Run(ctx) }()
					for left := c[1]; left > 0; {
						changes, err := w.Next(ctx)
						if err != nil {
							b.Fatal(err)
						}
						left -= len(changes)
					}
					b.StopTimer()
					cancel()
					<-ended //nolint:errcheck // its end is what counts
					w.Close()
					b.StartTimer()
				}
			})
		}
	}
}

func filled(tb testing.TB, nodes int, tasks []*api.Task) *store.Store {
	tb.Helper()
	s, err := store.NewLocal(store.Config{WatchLimit: 10_000_000})
	if err != nil {
		tb.Fatal(err)
	}
	const chunk = 2000
	for i := 0; i < nodes; i += chunk {
		update(tb, s, func(tx *store.Tx) error {
			for j := i; j < min(i+chunk, nodes); j++ {
				if err := store.Create(tx, benchNode(j)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i := 0; i < len(tasks); i += chunk {
		update(tb, s, func(tx *store.Tx) error {
			for _, t := range tasks[i:min(i+chunk, len(tasks))] {
				if err := store.Create(tx, t); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return s
}

func update(tb testing.TB, s *store.Store, fn func(tx *store.Tx) error) {
	tb.Helper()
	if _, err := s.Update(tb.Context(), fn); err != nil {
		tb.Fatal(err)
	}
}
