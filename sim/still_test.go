package sim

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/legion-swarm/legion/manager/control"
)

// A process that stands still (SIGSTOP, a paused virtual machine) says nothing, and what it
// had begun to do it does when it goes on: it sends what it was about to send, goes on to
// lead, and gets what its kernel has kept for it. Its raft's time stands still, too, as its ticks wait
// for messages to be sent. Other timers run on, and what they set off waits likewise: as in a
// process that gets the processor for a moment now and then.

// buffered is for how long others write to a process that stands still before they think
// the connection broken. It gets all that when it goes on.
const buffered = 5 * time.Second

// standStill has a host's daemon stand still for a while; then is called as it goes on.
func (c *cluster) standStill(ctx context.Context, h *host, d time.Duration, then func()) {
	if !h.running() {
		return
	}
	c.net.change(func() {
		if _, still := c.net.still[h.addr]; !still {
			c.net.still[h.addr] = time.Now()
		}
	})
	c.events.add(fmt.Sprintf("%s stands still for %s", h.id, d))
	c.wg.Go(func() {
		pause(ctx, d)
		c.wake(h)
		then()
	})
}

// wake lets a daemon go on.
func (c *cluster) wake(h *host) {
	c.net.change(func() {
		if _, still := c.net.still[h.addr]; still {
			c.events.add(h.id + " goes on")
		}
		delete(c.net.still, h.addr)
	})
}

// long is for how long a daemon stands still: seldom for more than it takes to be given up.
func (c *cluster) long() time.Duration {
	if c.rng.IntN(4) == 0 {
		return time.Duration(20+c.rng.IntN(60)) * time.Second
	}
	return time.Duration(500+c.rng.IntN(15_000)) * time.Millisecond
}

// pauseMachine pauses a virtual machine: its wall clock is behind when it goes on.
func (c *cluster) pauseMachine(ctx context.Context, h *host) {
	d := c.long()
	c.standStill(ctx, h, d, func() { h.setClock(time.Duration(h.clock.Load()) - d) })
}

// goOn waits while a host's process stands still.
func (n *network) goOn(addr string) {
	for {
		n.mu.Lock()
		_, still := n.still[addr]
		changed := n.changed
		n.mu.Unlock()
		if !still {
			return
		}
		<-changed
	}
}

// buffers reports whether what is sent to a host is not lost.
func (n *network) buffers(addr string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	since, still := n.still[addr]
	return !still || time.Since(since) < buffered
}

// killed reports whether a host's process ends by a kill.
func (n *network) killed(addr string) bool {
	n.mu.Lock()
	h := n.hosts[addr]
	n.mu.Unlock()
	return h != nil && h.killed()
}

// leading is the host that leads; another one, if none does.
func (c *cluster) leading(otherwise *host) *host {
	for _, h := range c.hosts {
		if m := h.managing(); m != nil && m.raft.Status().IsLeader {
			return h
		}
	}
	return otherwise
}

// TestProcessesThatStandStill has nothing go wrong but that: for less than it takes to give a
// node up, though for longer than an election. No task that runs is touched.
func TestProcessesThatStandStill(t *testing.T) {
	eachSeed(t, 5*time.Second, (*cluster).standingStill)
}

func (c *cluster) standingStill(ctx context.Context, t *testing.T) {
	web := spec("op-web", 3*len(c.hosts))
	if _, err := c.leader().control.ServiceCreate(ctx, web, control.ServiceOptions{}); err != nil {
		t.Fatal(err)
	}
	if !c.until(ctx, time.Minute, c.unsettled) {
		return
	}
	before, term := c.running(), c.leader().raft.Status().Term
	for round := range 30 {
		h := c.hosts[c.rng.IntN(len(c.hosts))]
		if round%2 == 0 {
			h = c.leading(h)
		}
		d := time.Duration(500+c.rng.IntN(4000)) * time.Millisecond
		c.standStill(ctx, h, d, func() {})
		pause(ctx, d+time.Duration(c.rng.IntN(8000))*time.Millisecond)
		if now := c.running(); !maps.Equal(before, now) {
			t.Errorf("%s stood still for %s, and %v runs instead of %v", h.id, d, now, before)
			return
		}
	}
	c.until(ctx, time.Minute, c.unsettled)
	if now := c.leader().raft.Status().Term; now < term+3 {
		t.Errorf("leaders stood still, and it is term %d after %d", now, term)
	}
}
