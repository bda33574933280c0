package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/raftnode/disktest"
)

// script does random things to hosts and network, until its steps are done.
func (c *cluster) script(ctx context.Context) {
	for step := range c.plan.steps {
		// What a step draws depends on what it finds; the next one's is the seed's.
		c.rng = rand.New(rand.NewPCG(c.seed, 1000+uint64(step)))
		if !pause(ctx, time.Duration(200+c.rng.IntN(5000))*time.Millisecond) {
			return
		}
		h := c.hosts[c.rng.IntN(len(c.hosts))]
		faults := c.faults(ctx)
		f := faults[c.rng.IntN(len(faults))]
		c.steps = append(c.steps, f.name+" "+h.id)
		c.events.add("SCRIPT: " + f.name + " " + h.id)
		f.do(h)
	}
}

type fault struct {
	name string
	do   func(h *host)
}

// faults are what may happen; what is listed twice happens twice as often.
func (c *cluster) faults(ctx context.Context) []fault {
	kill := fault{"kill", func(h *host) { h.end(true) }}
	power := fault{"power off", func(h *host) { h.powerOff() }}
	mend := fault{"mend", func(h *host) { h.mend() }}
	heal := fault{"heal the network, at", func(*host) { c.net.heal() }}
	cut := fault{"partition", func(h *host) { c.net.change(func() { c.net.isolate(h.addr) }) }}
	all := []fault{
		kill, kill, power, power, mend, mend, mend, mend, heal, heal, heal, cut, cut,
		{"stop", func(h *host) { h.end(false) }},
		{"partition in halves", func(*host) {
			c.net.change(func() {
				for _, a := range c.hosts {
					side := c.rng.IntN(2)
					for j, b := range c.hosts {
						if j%2 == side {
							c.net.close(a.addr, b.addr)
							c.net.close(b.addr, a.addr)
						}
					}
				}
			})
		}},
		{"nothing leaves", func(h *host) {
			c.net.change(func() {
				for _, o := range c.hosts {
					c.net.close(h.addr, o.addr)
				}
			})
		}},
		{"nothing reaches", func(h *host) {
			c.net.change(func() {
				for _, o := range c.hosts {
					c.net.close(o.addr, h.addr)
				}
			})
		}},
		{"a bad network, at", func(*host) {
			w := weather{loss: c.rng.Float64() * 0.2, twice: c.rng.Float64() * 0.2, late: time.Duration(1 + c.rng.IntN(200)*int(time.Millisecond))}
			c.net.change(func() { c.net.weather = w })
		}},
		{"a slow disk", func(h *host) {
			d := time.Duration(50+c.rng.IntN(3000)) * time.Millisecond
			h.files().Break(func(f *disktest.Faults) { f.SlowSync = d })
		}},
		{"a full disk", func(h *host) {
			space := int64(c.rng.IntN(20_000))
			h.files().Break(func(f *disktest.Faults) { f.Space, f.CopyOnWrite = space, true })
		}},
		{"power off in the middle of a sync", func(h *host) {
			h.files().PowerOffAt(1 + c.rng.IntN(10))
			pause(ctx, 500*time.Millisecond)
			h.powerOff()
		}},
		{"stop for a while the process of", func(h *host) { c.standStill(ctx, h, c.long(), func() {}) }},
		{"stop for a while the process of whoever leads, not", func(h *host) { c.standStill(ctx, c.leading(h), c.long(), func() {}) }},
		{"stop it as it writes, not", func(h *host) {
			h, d := c.leading(h), c.long()
			h.trap.Store(new(func() { c.standStill(ctx, h, d, func() {}) }))
		}},
		{"promote", func(h *host) {
			c.tell(ctx, h, "promote", func(n *swarm.NodeSpec) { n.Role = swarm.NodeRoleManager })
		}},
		{"demote", func(h *host) {
			c.tell(ctx, h, "demote", func(n *swarm.NodeSpec) { n.Role = swarm.NodeRoleWorker })
		}},
		{"drain", func(h *host) {
			if h != c.hosts[0] { // somebody must do the work
				c.tell(ctx, h, "drain", func(n *swarm.NodeSpec) { n.Availability = swarm.NodeAvailabilityDrain })
			}
		}},
		{"activate", func(h *host) {
			c.tell(ctx, h, "activate", func(n *swarm.NodeSpec) { n.Availability = swarm.NodeAvailabilityActive })
		}},
		{"drain all but the first, at", func(*host) {
			for _, h := range c.hosts[1:] {
				c.tell(ctx, h, "drain", func(n *swarm.NodeSpec) { n.Availability = swarm.NodeAvailabilityDrain })
			}
		}},
		{"activate all, at", func(*host) {
			for _, h := range c.hosts {
				c.tell(ctx, h, "activate", func(n *swarm.NodeSpec) { n.Availability = swarm.NodeAvailabilityActive })
			}
		}},
		{"pause", func(h *host) {
			if h != c.hosts[0] {
				c.tell(ctx, h, "pause", func(n *swarm.NodeSpec) { n.Availability = swarm.NodeAvailabilityPause })
			}
		}},
		{"label", func(h *host) {
			zone := zones[c.rng.IntN(len(zones))]
			c.tell(ctx, h, "zone "+zone+" for", func(n *swarm.NodeSpec) { n.Labels = map[string]string{"zone": zone} })
		}},
		{"remove", func(h *host) {
			if h != c.hosts[0] {
				c.remove(ctx, h)
			}
		}},
		{"let join again", func(*host) { c.rejoinAll(ctx) }},
		{"power off everywhere, at", func(*host) {
			for _, h := range c.hosts {
				h.powerOff()
			}
			pause(ctx, time.Duration(c.rng.IntN(30_000))*time.Millisecond)
			for _, h := range c.hosts {
				h.mend()
			}
		}},
		{"tasks die", func(h *host) {
			for _, id := range h.fake.Running() {
				if c.rng.IntN(2) == 0 {
					h.fake.Kill(id, 1)
					c.events.add(fmt.Sprintf("task %s dies", id))
				}
			}
		}},
	}
	if c.plan.clocks {
		set := fault{"set the clock of", c.setAClock}
		all = append(all, set, set, fault{"set all clocks right, at", func(*host) { c.clocksRight() }},
			fault{"pause the machine", func(h *host) { c.pauseMachine(ctx, h) }})
	}
	return all
}

func (h *host) files() *disktest.Disk {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.disk
}

// mend repairs a host, and starts it if it does not run.
func (h *host) mend() {
	h.files().Break(func(f *disktest.Faults) { *f = disktest.Faults{Space: -1} })
	h.c.net.mu.Lock()
	dark := h.dark
	h.c.net.mu.Unlock()
	switch {
	case dark:
		h.powerOn()
	case !h.running():
		h.c.net.reset(h.addr)
		h.start()
	}
}
