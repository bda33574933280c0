package dispatcher

import (
	"sync"
	"time"
)

const (
	// sendGap is how long a session gathers changes after it sent some: the first
	// change goes at once, those that come fast go together.
	sendGap = 5 * time.Millisecond
	// maxGap is the same when there is something new for all nodes all the time.
	maxGap = 5 * time.Second
	// waves is how many messages to each node, on average, are sent without any
	// regard to maxGap, and minWave how many there are at least.
	waves   = 2
	minWave = 1000
)

// pace says how long sessions gather changes. While thousands of nodes get new
// tasks without a pause, a message with one task each is what managers and
// agents would spend most of their time on; the tasks would start later, not
// earlier. So messages take from a store that fills up again at the rate at which
// each node could have one in maxGap: a change that concerns every node passes at
// once, a flood is sent in larger pieces. The zero value is ready. Safe for
// concurrent use.
type pace struct {
	mu   sync.Mutex
	used float64 // messages that were sent and are not made up for
	at   time.Time
}

// sent counts a message to one of so many nodes, and returns how long the
// next one to that node should wait.
func (p *pace) sent(now time.Time, nodes int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	wave := float64(max(minWave, nodes))
	perSecond := wave / maxGap.Seconds()
	p.used = min(max(0, p.used-now.Sub(p.at).Seconds()*perSecond)+1, (waves+1)*wave)
	p.at = now
	over := p.used - waves*wave
	if over <= 0 {
		return sendGap
	}
	return min(max(sendGap, time.Duration(over/perSecond*float64(time.Second))), maxGap)
}
