package raftnode

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"go.etcd.io/raft/v3/raftpb"
)

// TestTogether: what is proposed while the log is busy goes to each follower in one
// message.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1, nil)
		lead := c.leader()
		const count = 100
		sizes := map[uint64][]int{}
		c.net.mu.Lock()
		c.net.sees = func(message []byte) {
			var m raftpb.Message
			if err := m.Unmarshal(message); err != nil {
				t.Error(err)
			}
			if m.Type == raftpb.MsgApp && len(m.Entries) > 0 {
				sizes[m.To] = append(sizes[m.To], len(m.Entries))
			}
		}
		c.net.mu.Unlock()
		var all sync.WaitGroup
		release := make(chan struct{})
		all.Go(func() {
			if err := lead.do(t.Context(), func() error { <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		for i := range count {
			all.Go(func() {
				if _, err := lead.Propose(context.Background(), fmt.Appendf(nil, "set k%d v", i)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(release)
		all.Wait()
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		for id, got := range sizes {
			if len(got) != 1 || got[0] != count {
				t.Errorf("to member %d: messages of %v entries", id, got)
			}
		}
		if len(sizes) != 2 {
			t.Errorf("messages to %d members", len(sizes))
		}
	})
}
