package sim

import (
	"fmt"
	"time"
)

// jumps are by how much a host's wall clock may be wrong.
var jumps = []time.Duration{-48 * time.Hour, -time.Hour, -time.Minute, -2 * time.Second, 2 * time.Second, time.Minute, time.Hour, 48 * time.Hour}

// now is the host's wall clock. It has no monotonic reading: its time may be set, while
// all timers go on by the bubble's.
func (h *host) now() time.Time { return time.Now().Add(time.Duration(h.clock.Load())).Round(0) }

// setClock sets the host's wall clock.
func (h *host) setClock(by time.Duration) {
	h.clock.Store(int64(by))
	h.c.clockSet.Store(time.Now().UnixNano())
}

// setAClock sets a host's clock to a random time, and says by how much it is wrong then.
func (c *cluster) setAClock(h *host) {
	by := jumps[c.rng.IntN(len(jumps))]
	h.setClock(by)
	c.events.add(fmt.Sprintf("%s: its clock is wrong by %s", h.id, by))
}

// clocksRight sets all clocks.
func (c *cluster) clocksRight() {
	for _, h := range c.hosts {
		h.setClock(0)
	}
}

// clocksAgree reports whether all clocks are the same, and nobody has set one for some
// time.
func (c *cluster) clocksAgree() bool {
	for _, h := range c.hosts {
		if h.clock.Load() != c.hosts[0].clock.Load() {
			return false
		}
	}
	return time.Now().UnixNano()-c.clockSet.Load() > int64(patience+recently)
}
