package issuer

import (
	"sync"
	"time"
)

const (
	joinRate, joinBurst   = 100, 1000 // a second, for all callers together
	renewEvery, renewSome = 10 * time.Second, 6
	maxRenewing           = 100_000 // nodes whose renewals are counted
)

// bucket is a token bucket.
type bucket struct {
	left float64
	at   time.Time
}

// take takes one, if there is one.
func (b *bucket) take(now time.Time, perSecond, burst float64) bool {
	if b.at.IsZero() {
		b.left, b.at = burst, now
	}
	b.left = min(burst, b.left+max(now.Sub(b.at).Seconds(), 0)*perSecond)
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// limits bounds the requests for certificates, each of which costs a signature
// and a write to the log. Safe for concurrent use.
type limits struct {
	mu      sync.Mutex
	joins   bucket
	renewal map[string]*bucket
}

func newLimits() *limits { return &limits{renewal: map[string]*bucket{}} }

func (l *limits) join(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.joins.take(now, joinRate, joinBurst)
}

func (l *limits) renew(node string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.renewal[node]
	if b == nil {
		if len(l.renewal) >= maxRenewing {
			l.forget(now)
		}
		b = &bucket{}
		l.renewal[node] = b
	}
	return b.take(now, 1/renewEvery.Seconds(), renewSome)
}

// forget drops the buckets that are full again, or all if none is.
func (l *limits) forget(now time.Time) {
	for id, b := range l.renewal {
		if now.Sub(b.at) > renewEvery*renewSome {
			delete(l.renewal, id)
		}
	}
	if len(l.renewal) >= maxRenewing {
		clear(l.renewal)
	}
}
