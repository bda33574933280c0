// Package collector paces Go's garbage collector by what it costs. A daemon that
// does little is to be small; one with a lot to do on a small heap would spend a
// third of its time collecting. So the heap may grow further while collections
// take more of the processor than they should, and is small again soon after.
package collector

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Percent is by how much the heap grows between collections in quiet times.
	// After a burst of 50 containers the daemon keeps 54 MB, where it keeps 62 with
	// Go's own 100.
	Percent = 50
	// most is by how much it may grow at other times, unless that is more than
	// headroom or a part of the computer's memory.
	most         = 200
	headroom     = 768 << 20
	memoryShare  = 16
	window       = time.Second
	tooMuch      = 0.04 // of a processor
	little       = 0.01
	lull         = 5 * time.Second // without a collection, after which the heap is to be small again
	secondsTotal = "/cpu/classes/gc/total:cpu-seconds"
	bytesLive    = "/gc/heap/live:bytes"
)

// Run paces the collector of this process until ctx ends. There must be one at a
// time. A memory limit (GOMEMLIMIT) goes on to hold.
func Run(ctx context.Context) error {
	p := pace{percent: Percent, headroom: room()}
	debug.SetGCPercent(p.percent)
	defer debug.SetGCPercent(Percent)
	collected := make(chan struct{}, 1)
	var ended atomic.Bool
	defer ended.Store(true)
	tell(collected, &ended)
	quiet := time.NewTimer(lull)
	defer quiet.Stop()
	for {
		was := p.percent
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			p.sample(read(time.Now()))
		case <-quiet.C:
			p.percent = Percent
			runtime.GC() // else what is garbage now stays until there is more of it
		}
		if p.percent != was {
			debug.SetGCPercent(p.percent) // which stops the world
		}
		if p.percent > Percent {
			quiet.Reset(lull)
		} else {
			quiet.Stop()
		}
	}
}

// tell sends after each collection, until ended.
func tell(collected chan<- struct{}, ended *atomic.Bool) {
	type sentinel struct{ _ *byte }
	var again func(*sentinel)
	again = func(s *sentinel) {
		select {
		case collected <- struct{}{}:
		default:
		}
		if !ended.Load() {
			runtime.SetFinalizer(s, again)
		}
	}
	runtime.SetFinalizer(&sentinel{}, again)
}

// reading is what the collector has cost so far.
type reading struct {
	at   time.Time
	cost time.Duration // of processors
	live int64         // bytes that were left after the last collection
}

func read(now time.Time) reading {
	s := []metrics.Sample{{Name: secondsTotal}, {Name: bytesLive}}
	metrics.Read(s)
	r := reading{at: now}
	if s[0].Value.Kind() == metrics.KindFloat64 {
		r.cost = time.Duration(s[0].Value.Float64() * float64(time.Second))
	}
	if s[1].Value.Kind() == metrics.KindUint64 {
		r.live = int64(s[1].Value.Uint64())
	}
	return r
}

// room is how much garbage there may be where Percent does not allow it.
func room() int64 {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return headroom
	}
	return min(headroom, int64(s.Totalram)*int64(s.Unit)/memoryShare)
}

// pace decides by how much the heap may grow.
type pace struct {
	percent  int
	headroom int64
	from     reading // where the window begins
}

// sample takes a reading made after a collection.
func (p *pace) sample(r reading) {
	limit := Percent
	if r.live > 0 {
		limit = int(max(Percent, min(most, p.headroom*100/r.live)))
	}
	if took := r.at.Sub(p.from.at); took >= window {
		switch share := float64(r.cost-p.from.cost) / float64(took); {
		case p.from.at.IsZero():
		case share > tooMuch:
			p.percent *= 2
		case share < little:
			p.percent /= 2
		}
		p.from = r
	}
	p.percent = min(max(p.percent, Percent), limit)
}
