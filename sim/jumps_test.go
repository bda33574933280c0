package sim

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/manager/control"
)

// TestClocksThatJump sets the clocks of a swarm in which nothing else goes wrong, and has
// it led by one manager after the other: no task that runs is touched, and hardly
// anything is written. Then what is to take seconds takes seconds.
func TestClocksThatJump(t *testing.T) {
	eachSeed(t, 0, (*cluster).jumping)
}

// eachSeed plays a part in a few swarms that have begun, each in a bubble of its own. A
// heart-beat of 0 is the seed's.
func eachSeed(t *testing.T, heartbeat time.Duration, play func(*cluster, context.Context, *testing.T)) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, seed)
				if heartbeat > 0 {
					c.plan.heartbeat = heartbeat
				}
				c.begin(func(ctx context.Context) { play(c, ctx, t) })
				if len(c.broken) > 0 {
					t.Errorf("%s\n\nwhat happened last:\n%s", c.broken[0], c.events.tail())
				}
			})
		})
	}
}

// begin boots a swarm for as long as play takes.
func (c *cluster) begin(play func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	c.failed = cancel
	defer c.close()
	defer cancel()
	if c.boot(ctx) {
		play(ctx)
	}
}

func (c *cluster) jumping(ctx context.Context, t *testing.T) {
	o := newOperator(c, 0)
	web, all := spec("op-web", 4), spec(startFirst+"op-all", 0)
	all.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	m := c.hosts[0].managing()
	for _, s := range []*swarm.ServiceSpec{web, all} {
		s.UpdateConfig.Delay, s.UpdateConfig.Monitor, s.UpdateConfig.FailureAction = time.Second, time.Second, swarm.UpdateFailureActionPause
		_, err := m.control.ServiceCreate(ctx, s, control.ServiceOptions{})
		o.told("make "+s.Name, m, err)
	}
	settled := func(within time.Duration) bool { return c.until(ctx, within, c.unsettled) }
	if !settled(time.Minute) {
		return
	}
	before, index := c.running(), m.store.View().Index()
	for range 40 {
		h := c.hosts[c.rng.IntN(len(c.hosts))]
		c.setAClock(h)
		pause(ctx, time.Duration(500+c.rng.IntN(3000))*time.Millisecond)
		if m := h.managing(); m != nil && c.rng.IntN(3) == 0 {
			_ = c.leader().raft.TransferLeadership(ctx, m.id)
		}
	}
	if now := c.running(); !maps.Equal(before, now) {
		t.Errorf("clocks were set, and %v runs instead of %v", now, before)
	}
	// Each leader notes where its term begins, and may see a manager late.
	if wrote := m.store.View().Index() - index; wrote > 400 {
		t.Errorf("clocks were set, and that was written down %d times", wrote)
	}
	c.afterwards(ctx, settled, o)
}

// afterwards has a task replaced and a service updated, while clocks are wrong.
func (c *cluster) afterwards(ctx context.Context, settled func(time.Duration) bool, o *operator) {
	for round := range 4 {
		for _, h := range c.hosts {
			if ids := h.fake.Running(); len(ids) > 0 {
				h.fake.Kill(ids[0], 1)
			}
		}
		if !settled(20 * time.Second) {
			return
		}
		m := c.leader()
		s, err := m.control.ServiceInspect(ctx, "op-web", false)
		if err != nil {
			c.failf("look at op-web: %v", err)
			return
		}
		container := *s.Spec.TaskTemplate.ContainerSpec
		container.Image = fmt.Sprint("app:", 10+round)
		s.Spec.TaskTemplate.ContainerSpec = &container
		_, err = m.control.ServiceUpdate(ctx, s.ID, s.Version.Index, &s.Spec, control.ServiceOptions{})
		o.told("update op-web", m, err)
		pause(ctx, 2*time.Second)
		for _, h := range c.hosts {
			c.setAClock(h)
		}
		if !settled(30 * time.Second) {
			return
		}
		if s, err = m.control.ServiceInspect(ctx, "op-web", false); err != nil || s.UpdateStatus.State != swarm.UpdateStateCompleted {
			c.failf("op-web: %+v, %v", s.UpdateStatus, err)
			return
		}
	}
}

// running are the containers that run, with their hosts.
func (c *cluster) running() map[string]string {
	out := map[string]string{}
	for _, h := range c.hosts {
		for _, id := range h.fake.Running() {
			out[id] = h.id
		}
	}
	return out
}

// leader is the manager that leads; any, if none does.
func (c *cluster) leader() *manager {
	var any *manager
	for _, h := range c.hosts {
		if m := h.managing(); m != nil {
			if any = m; m.raft.Status().IsLeader {
				break
			}
		}
	}
	return any
}
