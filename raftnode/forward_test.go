package raftnode

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode/disktest"
)

// others are the running members but one.
func (c *cluster) others(id uint64) []*solo {
	var out []*solo
	for other, m := range c.members {
		if other != id {
			out = append(out, m)
		}
	}
	return out
}

// TestSuspectedLeader has the others elect one of them at once, and does nothing
// when only one believes it.
func TestSuspectedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1, nil)
		lead := c.leader()
		id, term := lead.cfg.ID, lead.Status().Term
		if err := c.others(id)[0].Suspect(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if st := c.leader().Status(); st.Leader != id || st.Term != term {
			t.Errorf("one false suspicion made %x lead in term %d, before it was %x in %d", st.Leader, st.Term, id, term)
		}
		c.crash(id)
		time.Sleep(10 * time.Millisecond) // its last messages arrive
		began := time.Now()
		for _, m := range c.others(id) {
			go func() { _ = m.Suspect(t.Context(), id) }() // the one that is too late may be told so
		}
		c.others(id)[0].propose(t, "after")
		if d := time.Since(began); d > 300*time.Millisecond {
			t.Errorf("the next write took %v", d)
		}
		c.start(id)
		c.converge()
	})
}

// TestProposedOnce proposes at followers while messages and answers get lost and
// leaders change: each entry is there exactly once.
func TestProposedOnce(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, seed, func(cfg *Config) { cfg.Patience = time.Minute })
			c.leader()
			c.net.mu.Lock()
			c.net.loss = 0.2
			c.net.mu.Unlock()
			const each = 30
			done := make(chan error)
			for _, m := range c.members {
				go func() {
					for i := range each {
						if _, err := m.Propose(t.Context(), fmt.Appendf(nil, "%d.%d", m.cfg.ID, i)); err != nil {
							done <- fmt.Errorf("%d.%d: %w", m.cfg.ID, i, err)
							return
						}
					}
					done <- nil
				}()
			}
			go func() {
				for range 4 {
					time.Sleep(500 * time.Millisecond)
					for _, m := range c.members {
						_ = m.TransferLeadership(t.Context(), 0) // only the leader can
					}
				}
			}()
			for range c.members {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			c.net.mu.Lock()
			c.net.loss = 0
			c.net.mu.Unlock()
			time.Sleep(3 * time.Second)
			c.converge()
			all := c.leader().list.all()
			seen := slices.Clone(all)
			slices.Sort(seen)
			if len(all) != 3*each || len(slices.Compact(seen)) != 3*each {
				t.Errorf("seed %d: %d entries of %d, %d different", seed, len(all), 3*each, len(slices.Compact(seen)))
			}
		})
	}
}

func TestAcceptRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2, nil)
		lead := c.leader()
		term := lead.Status().Term
		entry := make([]byte, proposalHeader+1)
		if err := lead.Accept(t.Context(), term, entry[:3]); !api.Is(err, api.Invalid) {
			t.Errorf("an entry without head: %v", err)
		}
		for name, err := range map[string]error{
			"another term": lead.Accept(t.Context(), term+1, entry),
			"a follower":   c.others(lead.cfg.ID)[0].Accept(t.Context(), term, entry),
		} {
			if !api.Is(err, api.NotLeader) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for range 3 {
			if err := lead.Accept(t.Context(), term, entry); err != nil {
				t.Error(err)
			}
		}
		c.converge()
		if got := lead.list.all(); len(got) != 1 {
			t.Errorf("an entry that came three times is there %d times", len(got))
		}
	})
}

// TestForceNewCluster goes on with one of three; what was acknowledged is there.
func TestForceNewCluster(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			forced := false
			c := newCluster(t, 3, seed, func(cfg *Config) {
				cfg.SnapshotInterval, cfg.SlowFollowerEntries = 20, 5
				cfg.ForceNewCluster, cfg.Address = forced, "new:1"
			})
			var want []string
			for i := range 10 + 15*int(seed) {
				want = append(want, fmt.Sprint(i))
				c.leader().propose(t, want[i])
			}
			c.converge()
			lead := c.leader().cfg.ID
			for id := uint64(1); id <= 3; id++ {
				if id != lead {
					c.crash(id)
				}
			}
			c.crash(lead)
			forced = true
			c.start(lead)
			forced = false
			alone := c.leader()
			alone.propose(t, "alone")
			if got := alone.list.all(); !slices.Equal(got, append(want, "alone")) {
				t.Errorf("seed %d: there is %q", seed, got)
			}
			if st := alone.Status(); len(st.Members) != 1 || !st.Members[0].Voter || st.Members[0].Address != "new:1" {
				t.Errorf("members: %+v", st.Members)
			}
			c.crash(lead)
			c.start(lead)
			c.leader().propose(t, "again")
			if n := len(c.members[lead].list.all()); n != len(want)+2 {
				t.Errorf("%d entries after a restart", n)
			}
			// A new member can join it, through a snapshot or without.
			c.start(4)
			if err := c.leader().AddLearner(t.Context(), Member{ID: 4, Address: "a:4"}); err != nil {
				t.Fatal(err)
			}
			for {
				ok, err := c.leader().CaughtUp(t.Context(), 4)
				if err != nil {
					t.Fatal(err)
				}
				if ok {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err := c.leader().Promote(t.Context(), Member{ID: 4, Address: "a:4"}); err != nil {
				t.Fatal(err)
			}
			c.converge()
		})
	}
}

func TestForceNewClusterNeedsALog(t *testing.T) {
	_, _, err := open(disktest.New(), func(cfg *Config) { cfg.ForceNewCluster = true })
	if !api.Is(err, api.Invalid) {
		t.Errorf("forced without a log: %v", err)
	}
}

// What is to be written in one term is not written in another: not by a member
// that never led, nor by one that was overthrown while it waited.
func TestProposalInTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 9, nil)
		old := c.leader()
		ctx := InTerm(t.Context(), old.Status().Term)
		if _, err := old.Propose(ctx, []byte("a")); err != nil {
			t.Fatal(err)
		}
		for _, m := range c.members {
			if m == old {
				continue
			}
			if _, err := m.Propose(ctx, []byte("follower")); !api.Is(err, api.NotLeader) {
				t.Errorf("through a follower: %v", err)
			}
		}
		c.net.partition(old.cfg.ID)
		lost := make(chan error, 1)
		go func() { _, err := old.Propose(ctx, []byte("lost")); lost <- err }()
		delete(c.members, old.cfg.ID)
		c.leader().propose(t, "b")
		c.members[old.cfg.ID] = old
		c.net.partition()
		if err := <-lost; !api.Is(err, api.NotLeader) {
			t.Errorf("of a leader that was overthrown: %v", err)
		}
		if _, err := old.Propose(ctx, []byte("late")); !api.Is(err, api.NotLeader) {
			t.Errorf("after its term: %v", err)
		}
		c.converge()
		if got := old.list.all(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("the log has %q", got)
		}
	})
}
