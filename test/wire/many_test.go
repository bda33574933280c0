package wire

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Many nodes at one manager: all get their tasks and all statuses arrive.
func TestManyNodes(t *testing.T) {
	nodes := 100
	if testing.Short() {
		nodes = 20
	}
	m, _ := newManager(t, options{})
	began := time.Now()
	var workers []*worker
	for range nodes {
		w := m.worker(t, nil)
		w.run(t)
		workers = append(workers, w)
	}
	for _, w := range workers {
		m.untilNode(t, w.id, swarm.NodeStateReady)
	}
	t.Logf("%d nodes ready after %v", nodes, time.Since(began))
	began = time.Now()
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			for j := range 10 {
				m.create(t, m.task(fmt.Sprintf("t%d-%d", i, j), w.id))
			}
		})
	}
	wg.Wait()
	m.until(t, "all tasks running", func(v *store.View) bool {
		return store.Count[*api.Task](v, store.ByTaskState(swarm.TaskStateRunning)) == 10*nodes
	})
	t.Logf("%d tasks RUNNING after %v", 10*nodes, time.Since(began))
}
