package keeper

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// What is carried in each step, and how threads are scheduled in the end.
func TestBulk(t *testing.T) {
	const step, much, little = 10 * time.Millisecond, bulkRate / 80, bulkRate / 1000
	for _, c := range []struct {
		name  string
		bytes []int // each step
		times int
		want  []uint32
	}{
		{"nothing", []int{0}, 100, nil},
		{"little", []int{little}, 100, nil},
		{"a burst", []int{4 * much, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 20, nil},
		{"much", []int{much}, 100, []uint32{schedBatch}},
		{"much, in bursts", []int{2 * much, 0}, 100, []uint32{schedBatch}},
		{"much, then half of it", slices.Concat(slices.Repeat([]int{much}, 20), slices.Repeat([]int{much/2 + little}, 50)), 1, []uint32{schedBatch}},
		{"much, then little", slices.Concat(slices.Repeat([]int{much}, 20), slices.Repeat([]int{little}, 20)), 2,
			[]uint32{schedBatch, schedNormal, schedBatch, schedNormal}},
		{"much, then none", slices.Concat(slices.Repeat([]int{much}, 20), slices.Repeat([]int{-1}, 20)), 1, []uint32{schedBatch, schedNormal}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []uint32
				b := newBulk(func(policy uint32) { got = append(got, policy) })
				r := rate{bulk: b}
				for range c.times {
					for _, n := range c.bytes {
						time.Sleep(step)
						synctest.Wait()
						if n >= 0 { // else the carrier sleeps
							r.carry(n, time.Now())
						}
					}
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("%v, want %v", got, c.want)
				}
				b.close()
				if len(got)%2 == 1 {
					t.Errorf("%v after it was closed", got)
				}
			})
		})
	}
}

// Several carriers are in bulk as long as any of them is.
func TestBulkOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []uint32
		b := newBulk(func(policy uint32) { got = append(got, policy) })
		var all [3]rate
		for i := range all {
			all[i].bulk = b
		}
		for i := range 300 {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			all[i/100].carry(bulkRate/90, time.Now())
		}
		if !slices.Equal(got, []uint32{schedBatch}) {
			t.Errorf("%v", got)
		}
		b.close()
	})
}

// All threads of the process are scheduled as they are told, and as before again;
// those that somebody has given another policy stay.
func TestSchedule(t *testing.T) {
	policies := func() (l []uint32) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			id, _ := strconv.Atoi(task.Name())
			if attr, err := unix.SchedGetAttr(id, 0); err == nil {
				l = append(l, attr.Policy)
			}
		}
		return l
	}
	for _, policy := range []uint32{schedBatch, schedNormal} {
		schedule(policy)
		for _, p := range policies() {
			if p != policy {
				t.Errorf("policy %d, want %d", p, policy)
			}
		}
	}
}
