package raftnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode/disktest"
)

// network is a Transport for many members, with faults. A message takes from
// fastest to five times as long.
type network struct {
	mu      sync.Mutex
	fastest time.Duration // 1 ms
	nodes   map[uint64]*Node
	cut     map[[2]uint64]bool
	loss    float64
	rng     *rand.Rand
	snaps   int
	closed  bool
	sees    func(message []byte) // of all that is sent; may be nil
}

func newNetwork(seed uint64) *network {
	return &network{fastest: time.Millisecond, nodes: map[uint64]*Node{}, cut: map[[2]uint64]bool{}, rng: rand.New(rand.NewPCG(seed, 7))}
}

// from is one member's end.
type from struct {
	net *network
	id  uint64
}

var _ Transport = from{}

func (f from) route(to uint64) (n *Node, d time.Duration) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	if f.net.closed || f.net.cut[[2]uint64{f.id, to}] || f.net.rng.Float64() < f.net.loss {
		return nil, 0
	}
	return f.net.nodes[to], f.net.fastest + time.Duration(f.net.rng.Int64N(int64(4*f.net.fastest)))
}

func (f from) Send(to Member, message []byte) {
	f.net.mu.Lock()
	if f.net.sees != nil {
		f.net.sees(message)
	}
	f.net.mu.Unlock()
	if n, d := f.route(to.ID); n != nil {
		time.AfterFunc(d, func() { _ = n.Step(message) }) // as a network does
	}
}

func (f from) SendSnapshot(ctx context.Context, to Member, message []byte, data io.Reader) error {
	n, _ := f.route(to.ID)
	if n == nil {
		return errors.New("no route")
	}
	f.net.mu.Lock()
	f.net.snaps++
	f.net.mu.Unlock()
	return n.StepSnapshot(ctx, message, data)
}

func (f from) Propose(ctx context.Context, to Member, term uint64, entry []byte) error {
	n, d := f.route(to.ID)
	if n == nil {
		return api.Errorf(api.Unavailable, "no route")
	}
	time.Sleep(d)
	if err := n.Accept(ctx, term, entry); err != nil {
		return err
	}
	if n, _ := f.route(to.ID); n == nil {
		return api.Errorf(api.Unavailable, "the answer got lost")
	}
	return nil
}

// partition cuts the members given from all others, both ways.
func (net *network) partition(ids ...uint64) {
	net.mu.Lock()
	defer net.mu.Unlock()
	clear(net.cut)
	for a := range net.nodes {
		for b := range net.nodes {
			if slices.Contains(ids, a) != slices.Contains(ids, b) {
				net.cut[[2]uint64{a, b}] = true
			}
		}
	}
}

// cluster is several members in one bubble.
type cluster struct {
	t       *testing.T
	net     *network
	rng     *rand.Rand
	disks   map[uint64]*disktest.Disk
	members map[uint64]*solo
	change  func(*Config)
}

func newCluster(t *testing.T, size int, seed uint64, change func(*Config)) *cluster {
	c := &cluster{t: t, net: newNetwork(seed), rng: rand.New(rand.NewPCG(seed, 8)), disks: map[uint64]*disktest.Disk{}, members: map[uint64]*solo{}, change: change}
	c.start(1)
	for id := uint64(2); id <= uint64(size); id++ {
		c.start(id)
		m := Member{ID: id, Address: fmt.Sprintf("a:%d", id)}
		lead := c.leader()
		if err := lead.AddLearner(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if err := lead.Promote(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.stop)
	return c
}

func (c *cluster) start(id uint64) {
	c.t.Helper()
	if c.disks[id] == nil {
		c.disks[id] = disktest.New()
	}
	n, l, err := open(c.disks[id], func(cfg *Config) {
		cfg.ID, cfg.Transport = id, from{c.net, id}
		if c.change != nil {
			c.change(cfg)
		}
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if id == 1 && n.Empty() {
		if err := n.Bootstrap("a:1"); err != nil {
			c.t.Fatal(err)
		}
	}
	c.members[id] = &solo{n, l, run(c.t, n)}
	c.net.mu.Lock()
	c.net.nodes[id] = n
	c.net.mu.Unlock()
}

// crash takes a member's power away.
func (c *cluster) crash(id uint64) {
	c.net.mu.Lock()
	delete(c.net.nodes, id)
	c.net.mu.Unlock()
	c.disks[id] = c.disks[id].Crash(c.rng)
	_ = c.members[id].end() // it may have met the crash
	delete(c.members, id)
}

func (c *cluster) stop() {
	c.net.mu.Lock()
	c.net.closed = true
	c.net.mu.Unlock()
	for id, m := range c.members {
		if err := m.end(); err != nil {
			c.t.Errorf("member %d: %v", id, err)
		}
	}
	time.Sleep(time.Second) // messages under way
}

// leader waits for a leader that a majority follows.
func (c *cluster) leader() *solo {
	c.t.Helper()
	for range 600 {
		for _, m := range c.members {
			if !m.Status().IsLeader {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err := m.ReadIndex(ctx)
			cancel()
			if err == nil && m.Status().IsLeader {
				return m
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal("no leader in a minute")
	return nil
}

// converge waits until all running members have the same items.
func (c *cluster) converge() {
	c.t.Helper()
	var differ string
	for range 600 {
		differ = ""
		want := c.leader().list.all()
		for id, m := range c.members {
			if got := m.list.all(); !slices.Equal(got, want) {
				differ = fmt.Sprintf("member %d has %d items, the leader %d", id, len(got), len(want))
			}
		}
		if differ == "" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal(differ)
}

func TestLeaderCrash(t *testing.T) {
	for _, size := range []int{3, 5} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, size, uint64(size), nil)
			lead := c.leader()
			lead.propose(t, "a")
			id := lead.cfg.ID
			c.crash(id)
			began := time.Now()
			next := c.leader()
			next.propose(t, "b")
			if d := time.Since(began); d > 4*time.Second {
				t.Errorf("the next write took %s", d)
			}
			c.start(id)
			c.converge()
			if got := c.members[id].list.all(); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("the old leader has %q", got)
			}
		})
	}
}

func TestPartitionedLeaderStepsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1, nil)
		old := c.leader()
		c.net.partition(old.cfg.ID)
		if _, err := old.Propose(t.Context(), []byte("lost")); !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "may still come to pass") {
			t.Fatalf("a proposal without a quorum: %v", err)
		}
		if _, err := old.Propose(t.Context(), []byte("refused")); !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "othing was changed") {
			t.Fatalf("the next one: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := old.ReadIndex(ctx); !api.Is(err, api.DeadlineExceeded) {
			t.Fatalf("a read without a quorum: %v", err)
		}
		delete(c.members, old.cfg.ID)
		c.leader().propose(t, "kept")
		c.members[old.cfg.ID] = old
		c.net.partition()
		c.converge()
		if got := old.list.all(); !slices.Equal(got, []string{"kept"}) {
			t.Fatalf("the old leader has %q", got)
		}
	})
}

// TestSnapshotCatchUp has a member come back after the log it lacks is gone.
func TestSnapshotCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2, func(cfg *Config) { cfg.SnapshotInterval, cfg.SlowFollowerEntries = 20, 5 })
		c.leader()
		lag := uint64(3)
		c.crash(lag)
		for i := range 200 {
			c.leader().propose(t, fmt.Sprint(i))
		}
		c.start(lag)
		c.converge()
		if c.net.snaps == 0 {
			t.Error("no snapshot was sent: the test is too weak")
		}
		for i := range 50 {
			c.leader().propose(t, fmt.Sprint("then ", i))
		}
		c.crash(lag)
		c.start(lag)
		c.converge()
		if st := c.members[lag].Status(); len(st.Voters) != 3 || st.Members[1].Address != "a:2" {
			t.Errorf("members: %+v", st.Members)
		}
	})
}

func TestFollowerProposesAndReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, nil)
		lead := c.leader()
		lead.propose(t, "x")
		for id, m := range c.members {
			if id == lead.cfg.ID {
				continue
			}
			if _, err := m.ReadIndex(t.Context()); err != nil || !slices.Contains(m.list.all(), "x") {
				t.Errorf("member %d reads %q, %v", id, m.list.all(), err)
			}
			m.propose(t, fmt.Sprint("by ", id))
			if got := m.list.all(); got[len(got)-1] != fmt.Sprint("by ", id) {
				t.Errorf("member %d does not see its own proposal: %q", id, got)
			}
		}
	})
}

func TestMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4, nil)
		lead := c.leader()
		if err := lead.SetAddress(t.Context(), Member{ID: 2, Address: "b:2"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the status follows
		if st := lead.Status(); st.Members[1].Address != "b:2" {
			t.Errorf("members: %+v", st.Members)
		}
		if err := lead.TransferLeadership(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if next := c.leader(); next == lead {
			t.Error("leadership was not transferred")
		}
		lead = c.leader()
		var crashed, other uint64
		for id := range c.members {
			if id != lead.cfg.ID && crashed == 0 {
				crashed = id
			} else if id != lead.cfg.ID {
				other = id
			}
		}
		c.crash(crashed)
		time.Sleep(3 * time.Second)
		if err := lead.Remove(t.Context(), other); !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "no quorum") {
			t.Errorf("removal of one that is needed: %v", err)
		}
		if err := lead.Remove(t.Context(), crashed); err != nil {
			t.Errorf("removal of one that is gone: %v", err)
		}
		if err := lead.Remove(t.Context(), other); err != nil {
			t.Errorf("removal of the last other one: %v", err)
		}
		if err := c.members[other].end(); err != nil {
			t.Error(err)
		}
		delete(c.members, other)
		id := lead.cfg.ID
		c.crash(id) // alone now, it needs nobody after a restart
		c.start(id)
		c.members[id].propose(t, "alone")
	})
}

func TestTwoChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 5, nil)
		lead := c.leader()
		errs := make(chan error, 4)
		for id := uint64(11); id < 15; id++ {
			go func() { errs <- lead.AddLearner(t.Context(), Member{ID: id, Address: "x"}) }()
		}
		done := 0
		for range 4 {
			switch err := <-errs; {
			case err == nil:
				done++
			case !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "another change"):
				t.Error(err)
			}
		}
		if st := lead.Status(); done == 0 || len(st.Learners) != done {
			t.Errorf("%d changes were made; learners: %v", done, st.Learners)
		}
	})
}

// Operations on the register of TestLinearizable.
type op struct {
	write bool
	value string
}

var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in := input.(op)
		if in.write {
			return true, in.value
		}
		return output == state, state
	},
}

// TestLinearizable reads and writes a register through crashes, partitions and
// loss, and has the history checked.
func TestLinearizable(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) { linearizable(t, seed) })
	}
}

func linearizable(t *testing.T, seed uint64) {
	c := newCluster(t, 3+2*int(seed%2), seed, func(cfg *Config) { cfg.SnapshotInterval, cfg.SlowFollowerEntries = 50, 10 })
	c.net.loss = 0.02
	var mu sync.Mutex // guards c.members, history
	var history []porcupine.Operation
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for client := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(client)))
			for i := 0; ctx.Err() == nil; i++ {
				mu.Lock()
				m := c.members[1+rng.Uint64N(uint64(len(c.disks)))]
				mu.Unlock()
				if m == nil {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				in := op{write: rng.IntN(2) == 0, value: fmt.Sprintf("%d-%d", client, i)}
				if o, ok := operate(ctx, m, in); ok {
					o.ClientId = client
					mu.Lock()
					history = append(history, o)
					mu.Unlock()
				}
				time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
			}
		})
	}
	for range 8 {
		victim := 1 + c.rng.Uint64N(uint64(len(c.disks)))
		if c.rng.IntN(2) == 0 {
			c.net.partition(victim)
			time.Sleep(3 * time.Second)
			c.net.partition()
		} else {
			mu.Lock()
			c.crash(victim)
			mu.Unlock()
			time.Sleep(3 * time.Second)
			mu.Lock()
			c.start(victim)
			mu.Unlock()
		}
		time.Sleep(2 * time.Second)
	}
	cancel()
	wg.Wait()
	c.converge()
	written := 0
	for _, o := range history {
		if o.Input.(op).write {
			written++
		}
	}
	if written < 100 {
		t.Fatalf("only %d writes: the test is too weak", written)
	}
	if res := porcupine.CheckOperationsTimeout(register, history, 0); res != porcupine.Ok {
		t.Fatalf("seed %d: the history of %d operations is %v", seed, len(history), res)
	}
}

// operate returns what is known of an operation: a write whose outcome is
// unknown may happen at any later time.
func operate(ctx context.Context, m *solo, in op) (o porcupine.Operation, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	o.Input, o.Call = in, time.Now().UnixNano()
	if !in.write {
		if _, err := m.ReadIndex(ctx); err != nil {
			return o, false
		}
		o.Output = ""
		if all := m.list.all(); len(all) > 0 {
			o.Output = all[len(all)-1]
		}
		o.Return = time.Now().UnixNano()
		return o, true
	}
	_, err := m.Propose(ctx, []byte(in.value))
	o.Return = time.Now().UnixNano()
	if err != nil {
		if api.Is(err, api.NotLeader) || strings.Contains(err.Error(), "othing was changed") {
			return o, false
		}
		o.Return = 1 << 62
	}
	return o, true
}

func TestGarbageFromPeersIsRefused(t *testing.T) {
	s := startSolo(t, disktest.New(), nil)
	for _, b := range [][]byte{nil, []byte("garbage"), bytes.Repeat([]byte{0xff}, 100), make([]byte, maxMessage+1)} {
		if err := s.Step(b); !api.Is(err, api.Invalid) {
			t.Errorf("%.10x: %v", b, err)
		}
		if err := s.StepSnapshot(t.Context(), b, bytes.NewReader(nil)); !api.Is(err, api.Invalid) {
			t.Errorf("%.10x: %v", b, err)
		}
	}
	s.propose(t, "still here")
	s.stop(t)
}

// TestVotesAreSeldomSplit: members that were started at the same moment, and so tick
// together, elect a leader at the first try, all but a few times.
func TestVotesAreSeldomSplit(t *testing.T) {
	const rounds, most = 100, 4
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1, nil)
		split := 0
		for range rounds {
			lead := c.leader()
			id, term := lead.cfg.ID, lead.Status().Term
			c.crash(id)
			split += int(c.leader().Status().Term - term - 1)
			for _, m := range c.others(id) {
				c.crash(m.cfg.ID)
			}
			for id := range uint64(3) {
				c.start(id + 1)
			}
		}
		if split > most {
			t.Errorf("%d elections of %d were for nothing", split, rounds)
		}
	})
}
