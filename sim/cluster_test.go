package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/store"
)

const (
	keepaliveIdle    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// bootLimit and quietLimit bound how long a swarm may take to come up, and to
	// be as it should when all faults are over.
	bootLimit  = 2 * time.Minute
	quietLimit = 4 * time.Minute
)

// plan is what a seed decides at the start.
type plan struct {
	managers, workers int
	steps             int
	heartbeat         time.Duration
	snapshotEvery     uint64
	clocks            bool // are set
}

func newPlan(rng *rand.Rand) plan {
	p := plan{
		managers: 3 + 2*rng.IntN(2), workers: 2 + rng.IntN(2), steps: 15 + rng.IntN(15),
		heartbeat: time.Duration(1+rng.IntN(5)) * time.Second, snapshotEvery: []uint64{40, 200, 10_000}[rng.IntN(3)],
	}
	p.clocks = rng.IntN(3) > 0
	return p
}

// cluster is a swarm in a bubble.
type cluster struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand // the script's
	plan    plan
	net     *network
	hosts   []*host
	events  *events
	checks  *checks
	history history
	mended  atomic.Bool // images that fail do so no more
	acked   atomic.Int64
	clock   atomic.Int64
	// clockSet is when somebody last set a host's clock.
	clockSet atomic.Int64
	steps    []string // of the script
	raftIDs  atomic.Uint64
	wg       sync.WaitGroup
	orders   sync.WaitGroup // of users to nodes, under way

	mu     sync.Mutex
	broken []string
	failed context.CancelFunc
}

func newCluster(t *testing.T, seed uint64) *cluster {
	c := &cluster{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), net: newNetwork(seed), events: newEvents(), failed: func() {}}
	c.plan, c.checks = newPlan(c.rng), newChecks(c.failf)
	var peers []swarm.Peer
	for i := range c.plan.managers + c.plan.workers {
		h := newHost(c, i)
		if i < c.plan.managers {
			h.manages = true
			if i == 0 {
				h.raftID = firstRaftID
			}
			peers = append(peers, swarm.Peer{NodeID: h.node(), Addr: h.addr})
		}
		c.hosts = append(c.hosts, h)
		c.net.hosts[h.addr] = h
	}
	for _, h := range c.hosts {
		h.peers = peers
	}
	return c
}

// failf notes that something is not as it must be, and ends the run.
func (c *cluster) failf(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	c.events.add("BROKEN: " + what)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = append(c.broken, what)
	c.failed()
}

// simulate runs one seed, and returns the steps of its script.
func simulate(t *testing.T, seed uint64) (steps []string) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, seed)
		c.run()
		steps = append(c.steps, fmt.Sprintf("%+v", c.plan))
		if len(c.broken) > 0 {
			t.Errorf("seed %d (%+v): %s\n\nwhat happened last:\n%s", seed, c.plan, c.broken[0], c.events.tail())
			return
		}
		t.Logf("seed %d: %d managers, %d workers, %s, %d writes acknowledged, %d entries, %d operations on registers",
			seed, c.plan.managers, c.plan.workers, time.Since(c.events.began).Round(time.Second), c.acked.Load(), c.checks.frontier, len(c.history.ops))
	})
	return steps
}

func (c *cluster) run() {
	ctx, cancel := context.WithCancel(context.Background())
	c.failed = cancel
	defer c.close()
	if !c.boot(ctx) {
		return
	}
	clients := []*client{newClient(c, 0), newClient(c, 1), newClient(c, 2)}
	var wg sync.WaitGroup
	work, stop := context.WithCancel(ctx)
	for _, cl := range clients {
		wg.Go(func() { cl.run(work) })
	}
	for id := range 2 {
		wg.Go(func() { newOperator(c, id).run(work) })
	}
	for id := range 3 {
		wg.Go(func() { c.registerClient(work, id) })
	}
	c.script(ctx)
	stop()
	wg.Wait()
	c.calm()
	c.orders.Wait() // what they ask for is not undone yet
	if ctx.Err() == nil {
		c.quiet(ctx, clients)
	}
	cancel()
}

// boot starts all hosts, and makes the registers.
func (c *cluster) boot(ctx context.Context) bool {
	for _, h := range c.hosts {
		h.start()
	}
	up := c.until(ctx, bootLimit, func() string {
		for _, h := range c.hosts {
			m := h.managing()
			if is, _ := h.certified(); m == nil && is {
				return h.id + " has no manager part"
			} else if m == nil {
				continue
			}
			if st := m.raft.Status(); st.Leader == 0 || len(st.Voters) != c.plan.managers {
				return fmt.Sprintf("%s: %+v", h.id, st)
			}
			for n := range store.List[*api.Node](m.store.View()) {
				if n.Status.State != swarm.NodeStateReady {
					return fmt.Sprintf("%s: node %s is %+v", h.id, n.ID, n.Status)
				}
			}
		}
		return ""
	})
	if !up {
		return false
	}
	for k := range registers {
		if _, err := c.hosts[0].managing().control.ServiceCreate(ctx, spec(fmt.Sprint(register, k), 0), control.ServiceOptions{}); err != nil {
			c.failf("registers: %v", err)
			return false
		}
	}
	return true
}

// until waits for a condition, which says what is missing.
func (c *cluster) until(ctx context.Context, limit time.Duration, missing func() string) bool {
	end := time.Now().Add(limit)
	for {
		what := missing()
		switch {
		case what == "":
			return true
		case ctx.Err() != nil:
			return false
		case time.Now().After(end):
			c.failf("not within %s: %s", limit, what)
			return false
		}
		pause(ctx, 500*time.Millisecond)
	}
}

// calm ends all faults.
func (c *cluster) calm() {
	c.events.add("all faults end")
	c.mended.Store(true)
	for _, h := range c.hosts {
		h.trap.Store(nil)
		c.wake(h)
		h.mend()
	}
	c.net.heal()
}

// quiet checks what must be so some time after the last fault.
func (c *cluster) quiet(ctx context.Context, clients []*client) {
	if !c.until(ctx, quietLimit, func() string { return c.settleNodes(ctx) }) || !c.until(ctx, quietLimit, func() string { return c.removedLate(ctx, c.unsettled) }) {
		return
	}
	const longer = 10 * time.Second
	if !pause(ctx, longer) { // and stays so
		return
	}
	if what := c.unsettledFor(ahead - longer); what != "" {
		c.failf("it was settled, and then: %s", what)
	}
	for _, h := range c.hosts {
		if m := h.managing(); m != nil {
			c.compare(m, clients)
		}
	}
	if what := c.history.linear(); what != "" {
		c.failf("%s", what)
	}
	if ctx.Err() == nil {
		c.balances(ctx)
	}
}

// compare checks a manager's replica against what clients were told.
func (c *cluster) compare(m *manager, clients []*client) {
	view := m.store.View()
	s, err := digest(view)
	if err != nil {
		c.failf("%s: %v", m.host.id, err)
	}
	c.checks.mu.Lock()
	if other, ok := c.checks.digests[view.Index()]; ok && other != s {
		c.failf("%s: its last state is not what another manager has", m.host.id)
	}
	c.checks.digests[view.Index()] = s
	c.checks.mu.Unlock()
	known := map[string]bool{}
	for _, cl := range clients {
		for name, may := range cl.may {
			known[name] = true
			have := absent
			for s := range store.List[*api.Service](view, store.ByName(name)) {
				have = int(*s.Spec.Mode.Replicated.Replicas)
			}
			if !slices.Contains(may, have) {
				c.failf("%s: service %s has %d replicas (-1: it is not there); clients were told %v", m.host.id, name, have, may)
			}
		}
	}
	for s := range store.List[*api.Service](view) {
		if !known[s.Spec.Name] && !strings.HasPrefix(s.Spec.Name, register) && !strings.Contains(s.Spec.Name, operated) {
			c.failf("%s: nobody made service %s", m.host.id, s.Spec.Name)
		}
	}
}

// close ends everything.
func (c *cluster) close() {
	c.net.heal()
	for _, h := range c.hosts {
		h.end(true)
	}
	c.net.closeAll()
	c.orders.Wait()
	c.wg.Wait()
	time.Sleep(time.Minute) // what is under way
}
