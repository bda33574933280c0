package collector

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	start := time.Now()
	at := func(s, costMS float64, live int64) reading {
		return reading{at: start.Add(time.Duration(s * float64(time.Second))), cost: time.Duration(costMS) * time.Millisecond, live: live}
	}
	const mb = 1 << 20
	p := pace{percent: Percent, headroom: 512 * mb}
	for _, c := range []struct {
		name string
		r    reading
		want int
	}{
		{"the first reading says nothing", at(0, 100, 20*mb), 50},
		{"nor does a window that is not over", at(0.5, 900, 20*mb), 50},
		{"collections take a lot", at(1, 1000, 20*mb), 100},
		{"still", at(2, 1100, 20*mb), 200},
		{"a little more than little", at(3, 1120, 20*mb), 200},
		{"never more than twice as much", at(4, 1220, 20*mb), 200},
		{"the heap grows beyond the headroom", at(5.1, 1330, 512*mb), 100},
		{"by far", at(5.2, 1340, 4096*mb), 50},
		{"a heap of this size is never given more", at(7, 2000, 4096*mb), 50},
		{"smaller again", at(9, 2200, 128*mb), 100},
		{"and quiet", at(11, 2201, 128*mb), 50},
		{"it is never less", at(13, 2201, 128*mb), 50},
	} {
		if p.sample(c.r); p.percent != c.want {
			t.Errorf("%s: %d %%, not %d", c.name, p.percent, c.want)
		}
	}
}

// TestRun: each collection is noticed, and all is as before when it ends.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx) }()
	for range 3 {
		runtime.GC()
	}
	if r := read(time.Now()); r.live <= 0 || r.cost <= 0 {
		t.Errorf("the collector's cost is unknown: %+v", r)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if was := debug.SetGCPercent(100); was != Percent {
		t.Errorf("it ends with %d %%", was)
	}
}
