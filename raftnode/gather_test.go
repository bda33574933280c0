package raftnode

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/raftnode/disktest"
)

// closedLoop has clients propose again and again, each after a moment's thought.
func closedLoop(t *testing.T, at *solo, clients, each int, most time.Duration) {
	var all sync.WaitGroup
	for c := range clients {
		rng := rand.New(rand.NewPCG(uint64(c), 1))
		all.Go(func() {
			for i := range each {
				time.Sleep(time.Duration(rng.Int64N(int64(most))))
				at.propose(t, fmt.Sprintf("%d-%d", c, i))
			}
		})
	}
	all.Wait()
}

// Eight who propose as soon as they are answered share almost all rounds.
func TestGatherCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1, nil)
		lead := c.leader()
		rounds := map[uint64]bool{}
		c.net.mu.Lock()
		c.net.fastest = 50 * time.Microsecond
		c.net.sees = func(message []byte) {
			var m raftpb.Message
			if err := m.Unmarshal(message); err != nil {
				t.Error(err)
			}
			if m.Type == raftpb.MsgApp && len(m.Entries) > 0 {
				rounds[m.Entries[len(m.Entries)-1].Index] = true
			}
		}
		c.net.mu.Unlock()
		const clients, each = 8, 100
		closedLoop(t, lead, clients, each, time.Millisecond)
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		if most := each * 5 / 4; len(rounds) > most {
			t.Errorf("%d proposals of %d clients took %d rounds, more than %d", clients*each, clients, len(rounds), most)
		}
	})
}

// Who proposes alone does not wait for a crowd that has gone.
func TestGatherAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSolo(t, disktest.New(), nil)
		closedLoop(t, s, 8, 50, time.Millisecond)
		const count = 1000
		start := time.Now()
		for i := range count {
			s.propose(t, fmt.Sprint("alone", i))
		}
		// The first wait is followed by 1 round that does not wait, then 3, 7, …
		if most := 20 * gatherHold; time.Since(start) > most {
			t.Errorf("%d proposals, one after another, waited for %s, more than %s", count, time.Since(start), most)
		}
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
}

// Two who propose at their own pace wait for each other now and then at most.
func TestGatherStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSolo(t, disktest.New(), nil)
		var all sync.WaitGroup
		all.Go(func() { closedLoop(t, s, 1, 100, 100*time.Millisecond) })
		const count = 1000
		var waited time.Duration
		for i := range count {
			time.Sleep(3 * time.Millisecond)
			start := time.Now()
			s.propose(t, fmt.Sprint("steady", i))
			waited += time.Since(start)
		}
		all.Wait()
		if most := count / 10 * gatherHold; waited > most {
			t.Errorf("%d proposals waited for %s, more than %s", count, waited, most)
		}
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
}

// What waits for company is answered when the leader steps down or ends.
func TestGatherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSolo(t, disktest.New(), nil)
		waiting := make(chan error, 1)
		if err := s.do(t.Context(), func() error { s.gather.crowd = 2; return nil }); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		go func() {
			_, err := s.Propose(t.Context(), []byte("held"))
			waiting <- err
		}()
		synctest.Wait()
		select {
		case err := <-waiting:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		if err := <-waiting; err == nil {
			t.Error("a proposal that was never in the log is acknowledged")
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("its end took %s", d)
		}
	})
}
