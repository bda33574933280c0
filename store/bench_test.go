package store

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/legion-swarm/legion/api"
)

// fill makes tasks of 1,000 services on 1,000 nodes, all RUNNING.
func fill(tb testing.TB, s *Store, tasks int) {
	tb.Helper()
	const batch = 1000
	for at := 0; at < tasks; at += batch {
		_, err := s.Update(context.Background(), func(tx *Tx) error {
			for i := at; i < min(at+batch, tasks); i++ {
				spec := &api.TaskSpec{ServiceName: fmt.Sprintf("service-%d", i%1000)}
				t := &api.Task{ID: api.NewID(), ServiceID: fmt.Sprintf("s%024d", i%1000), SpecVersion: 7, Slot: i / 1000, NodeID: fmt.Sprintf("n%024d", i*7%1000), Spec: spec}
				t.Status.State, t.DesiredState, t.Status.Message = "running", "running", "started"
				if err := Create(tx, t); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkMemory reports what a task takes of memory, all indices included.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{10_000, 200_000} {
		b.Run(fmt.Sprintf("tasks=%d", n), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				s, err := NewLocal(Config{})
				if err != nil {
					b.Fatal(err)
				}
				fill(b, s, n)
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/task")
				runtime.KeepAlive(s)
			}
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, clients := range []int{1, 8} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := newLocal(b, Config{})
			var wg sync.WaitGroup
			for c := range clients {
				wg.Go(func() {
					for i := c; i < b.N; i += clients {
						create(b, s, fmt.Sprintf("id%d", i), fmt.Sprintf("service-%d", i))
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	s := newLocal(b, Config{})
	for i := range 1000 {
		create(b, s, fmt.Sprintf("id%d", i), fmt.Sprintf("service-%d", i))
	}
	fill(b, s, 10_000)
	v := s.View()
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if Get[*api.Service](v, "id500") == nil {
				b.Fatal("not there")
			}
		}
	})
	b.Run("list=1000services", func(b *testing.B) {
		for b.Loop() {
			n := 0
			for range List[*api.Service](v) {
				n++
			}
		}
	})
	b.Run("list=10000tasks", func(b *testing.B) {
		for b.Loop() {
			n := 0
			for range List[*api.Task](v) {
				n++
			}
		}
	})
	b.Run("tasksofnode", func(b *testing.B) {
		for b.Loop() {
			Count[*api.Task](v, ByNode(fmt.Sprintf("n%024d", 7)))
		}
	})
}

// BenchmarkSnapshot writes and restores 100,000 tasks.
func BenchmarkSnapshot(b *testing.B) {
	s := newLocal(b, Config{})
	fill(b, s, 100_000)
	var buf bytes.Buffer
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			buf.Reset()
			if err := s.Snapshot()(&buf); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(buf.Len())/100_000, "B/task")
	})
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			if err := s.Restore(bytes.NewReader(buf.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}
