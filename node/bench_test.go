package node

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/dockerapi"
)

// BenchmarkServiceCreate creates services of no tasks at the leader, and at a
// follower, of three managers.
func BenchmarkServiceCreate(b *testing.B) {
	for _, at := range []string{"leader", "follower"} {
		for _, clients := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/clients=%d", at, clients), func(b *testing.B) {
				nodes := managers(b, 3)
				n := leader(b, nodes)
				if at == "follower" {
					n = without(nodes, n)[0]
				}
				var next atomic.Int64
				var wg sync.WaitGroup
				began := processorTime(b)
				b.ResetTimer()
				for range clients {
					wg.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							if _, err := n.ServiceCreate(b.Context(), spec(fmt.Sprint("s", i), 0), dockerapi.ServiceOptions{}); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
				b.ReportMetric(float64((processorTime(b)-began).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		}
	}
}

// processorTime is what the process has used, the kernel's work for it included.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkJoinAsManager is from the request until the node is ready.
func BenchmarkJoinAsManager(b *testing.B) {
	first := newTestNode(b, nil)
	first.init()
	var took time.Duration
	for range b.N {
		n := newTestNode(b, nil)
		began := time.Now()
		n.joinAsManager(first)
		first.untilNode(n.id(), is(swarm.NodeStateReady))
		took += time.Since(began)
		if err := n.SwarmLeave(b.Context(), true); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "ms/join")
}
