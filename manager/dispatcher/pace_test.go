package dispatcher

import (
	"testing"
	"time"
)

// TestPace: what concerns every node goes at once, also twice; a flood goes in
// pieces that are as far apart as maxGap, and is forgotten.
func TestPace(t *testing.T) {
	for _, nodes := range []int{1, 100, 10_000} {
		var p pace
		now := time.Now()
		wave := max(nodes, minWave)
		for i := range waves * wave {
			if d := p.sent(now, nodes); d != sendGap {
				t.Fatalf("%d nodes: message %d has the next one wait for %v", nodes, i, d)
			}
		}
		var last time.Duration
		for range wave {
			last = p.sent(now, nodes)
		}
		if last < maxGap*99/100 || last > maxGap {
			t.Errorf("%d nodes: the last of a wave too many waits for %v", nodes, last)
		}
		// In a flood each session sends when it may: nobody waits for longer.
		for range 10 * wave {
			now = now.Add(maxGap / time.Duration(wave))
			if d := p.sent(now, nodes); d < maxGap*98/100 || d > maxGap {
				t.Fatalf("%d nodes: in a flood one waits for %v", nodes, d)
			}
		}
		if d := p.sent(now.Add((waves+1)*maxGap), nodes); d != sendGap {
			t.Errorf("%d nodes: long after the flood one waits for %v", nodes, d)
		}
	}
}
