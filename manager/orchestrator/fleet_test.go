package orchestrator_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// TestFleet updates 1,000 tasks on 100 nodes, in either order, with nodes that are
// drained and come back meanwhile: tasks that run are never fewer than parallelism
// and order allow, at any step of any task.
func TestFleet(t *testing.T) {
	const replicas, nodes, parallelism = 1000, 100, 50
	for _, order := range []swarm.UpdateOrder{swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst} {
		t.Run(string(order), func(t *testing.T) {
			w := newWorld(t)
			for i := range nodes {
				w.node(fmt.Sprintf("n%03d", i), nil)
			}
			w.setService("web", func(s *swarm.ServiceSpec) {
				s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
				s.UpdateConfig = &swarm.UpdateConfig{Parallelism: parallelism, Order: order}
			})
			w.settle()
			w.setService("web", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "b" })
			least, lowest := replicas-parallelism, replicas
			if order == swarm.UpdateOrderStartFirst {
				least = replicas
			}
			running := replicas
			random := rand.New(rand.NewPCG(1, 2))
			rounds := 0
			for ; w.services["web"].UpdateStatus == nil || w.services["web"].UpdateStatus.State != swarm.UpdateStateCompleted; rounds++ {
				if rounds == 5000 {
					t.Fatal("the update never ends")
				}
				if rounds%20 == 0 {
					w.drainOne(fmt.Sprintf("n%03d", random.IntN(nodes)))
				}
				w.plan()
				w.place()
				for _, task := range w.sorted() {
					if random.IntN(4) == 0 || api.Final(task.Status.State) { // some are slower
						continue
					}
					was := task.Status.State
					w.step(task)
					if is := w.tasks[task.ID].Status.State; is != was {
						running += isRunning(is) - isRunning(was)
					}
					if lowest = min(lowest, running); running < least {
						t.Fatalf("round %d: %d of %d run", rounds, running, replicas)
					}
				}
				if len(w.again) > 0 && rounds%10 == 0 {
					w.now = w.now.Add(1e9)
				}
			}
			t.Logf("%d rounds, never fewer than %d running", rounds, lowest)
		})
	}
}

func isRunning(s swarm.TaskState) int {
	if s == swarm.TaskStateRunning {
		return 1
	}
	return 0
}
