package keeper

import (
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bulkRate is from how many bytes a second on what is carried is in bulk. Half of
	// it ends that.
	bulkRate = 64 << 20
	// bulkWindow is how long that is looked at.
	bulkWindow = 50 * time.Millisecond

	schedNormal, schedBatch = 0, 3 // sched(7)
)

// bulk has the process's threads not preempt others while much is carried. On a busy
// processor a program that sends would be taken off it for each frame it has sent;
// so it goes on, and the carrier finds many. Otherwise threads preempt, since
// questions and answers want to be carried at once. It is safe for concurrent use.
type bulk struct {
	carried atomic.Int64
	threads func(policy uint32) // sets it

	on   atomic.Bool // run is there
	done chan struct{}
	wg   sync.WaitGroup
}

func newBulk(threads func(policy uint32)) *bulk {
	return &bulk{threads: threads, done: make(chan struct{})}
}

// begin is for who has carried at bulkRate.
func (b *bulk) begin() {
	if b.on.CompareAndSwap(false, true) {
		b.wg.Go(b.run)
	}
}

// run ends when little was carried in a window.
func (b *bulk) run() {
	defer b.on.Store(false)
	b.threads(schedBatch)
	defer b.threads(schedNormal)
	t := time.NewTicker(bulkWindow)
	defer t.Stop()
	for last := b.carried.Load(); ; {
		select {
		case <-t.C:
		case <-b.done:
			return
		}
		now := b.carried.Load()
		if now-last < inBulk(bulkWindow)/2 {
			return
		}
		last = now
	}
}

// close comes when nobody carries any more.
func (b *bulk) close() {
	close(b.done)
	b.wg.Wait()
}

// inBulk is how many bytes are carried in bulk.
func inBulk(d time.Duration) int64 { return int64(d.Seconds() * bulkRate) }

// rate is how much one carrier carries. It is used by one goroutine.
type rate struct {
	bulk  *bulk
	since time.Time
	bytes int64
}

// carry notes what was carried up to now.
func (r *rate) carry(n int, now time.Time) {
	r.bytes += int64(n)
	r.bulk.carried.Add(int64(n))
	d := now.Sub(r.since)
	if d < bulkWindow {
		return
	}
	if r.bytes >= inBulk(d) {
		r.bulk.begin()
	}
	r.since, r.bytes = now, 0
}

// schedule sets the policy of the process's threads that have an ordinary one. Those
// that begin later have that of the one they come from.
func schedule(policy uint32) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		attr, err := unix.SchedGetAttr(id, 0)
		if err != nil || attr.Policy == policy || (attr.Policy != schedNormal && attr.Policy != schedBatch) {
			continue // ended meanwhile, or chosen by who runs it
		}
		attr.Policy = policy
		_ = unix.SchedSetAttr(id, attr, 0) // without it, it is only slower
	}
}
