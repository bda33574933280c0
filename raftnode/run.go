package raftnode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/legion-swarm/legion/api"
)

// Run drives the member until ctx ends (nil) or it can't go on (the reason).
// Everything that waits is then answered, and the folder is free.
func (n *Node) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() { err = n.end(cancel, err, recover()) }()
	n.running = true
	n.tasks.Go(func() { n.applyLoop(ctx) })
	ticker := time.NewTicker(n.cfg.Tick)
	defer ticker.Stop()
	for ticking := true; ; {
		if err := n.ready(ctx); err != nil {
			return err
		}
		if n.soleVoter() && n.raw.BasicStatus().RaftState == raft.StateFollower {
			if err := n.raw.Campaign(); err != nil {
				return err
			}
			if err := n.ready(ctx); err != nil {
				return err
			}
		}
		if idle := n.alone() && n.raw.BasicStatus().RaftState == raft.StateLeader; idle == ticking {
			ticking = !idle
			if idle {
				ticker.Stop()
			} else {
				ticker.Reset(n.cfg.Tick)
			}
		}
		if err := n.wait(ctx, ticker); err != nil {
			if errors.Is(err, errEnd) {
				return nil
			}
			return err
		}
		if n.ripe() {
			n.putAll()
		}
	}
}

// errEnd ends Run without an error.
var errEnd = errors.New("the context has ended")

// wait waits for something to do, and does all that is there.
func (n *Node) wait(ctx context.Context, ticker *time.Ticker) error {
	select {
	case <-ctx.Done():
		return errEnd
	case <-ticker.C:
		n.ticks++
		n.raw.Tick()
		n.reads.tick(n)
		n.stagger(ticker)
	case <-n.gather.due:
		n.gather.expire()
	case <-n.held.due:
		n.release()
	case <-n.poke:
		n.publish()
	case m := <-n.messages:
		n.step(m)
	case r := <-n.requests:
		if err := n.request(ctx, r); err != nil {
			return err
		}
	case s := <-n.snapEnd:
		return n.snapshotDone(s)
	case err := <-n.failures:
		return err
	}
	for range maxPending { // so that one fdatasync serves all
		select {
		case m := <-n.messages:
			n.step(m)
		case r := <-n.requests:
			if err := n.request(ctx, r); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// stagger makes ticks uneven while nobody leads. Raft draws election time-outs in ticks:
// members that tick at the same moments would campaign at the same moment each tenth
// time, again and again, and get no majority.
func (n *Node) stagger(ticker *time.Ticker) {
	even := n.raw.BasicStatus().Lead != raft.None
	switch {
	case !even:
		ticker.Reset(n.cfg.Tick*3/4 + rand.N(n.cfg.Tick/2))
	case !n.even:
		ticker.Reset(n.cfg.Tick)
	}
	n.even = even
}

// soleVoter reports whether this member needs nobody's vote but its own.
func (n *Node) soleVoter() bool { return slices.Equal(n.conf.Voters, []uint64{n.cfg.ID}) }

// alone reports whether this member is the only one.
func (n *Node) alone() bool { return n.soleVoter() && len(n.conf.Learners) == 0 }

// end answers everybody, waits for all goroutines and closes the files.
func (n *Node) end(cancel func(), err error, panicked any) error {
	if panicked != nil { // raft panics when its invariants are broken
		n.cfg.Log.Error("raft: halted", "panic", panicked, "stack", string(debug.Stack()))
		err = fmt.Errorf("raft halted: %v", panicked)
	}
	if errors.Is(err, errEnd) {
		err = nil
	}
	cancel()
	n.tasks.Wait()
	n.running = false
	select {
	case s := <-n.snapEnd: // it was written while Run ended
		if err == nil {
			err = n.snapshotDone(s)
		}
	default:
	}
	if err == nil && n.full == nil && n.hard != n.wal.state && n.hard.Term > 0 {
		// It makes the next start quicker, and nobody waits for it.
		if failed := n.wal.append(batch{state: &n.hard}); !errors.Is(failed, errNoSpace) {
			err = failed
		}
	}
	err = errors.Join(err, n.Close())
	st := n.Status()
	st.Err, st.IsLeader = err, false
	n.status.Store(&st)
	close(n.done)
	n.wake()
	n.failAll(n.stopped())
	return err
}

func (n *Node) stopped() error {
	if err := n.Status().Err; err != nil {
		return api.Errorf(api.Unavailable, "this manager has stopped: its raft log failed: %w", err)
	}
	return api.Errorf(api.Unavailable, "this manager is stopping, or is a manager no more: ask another one")
}
