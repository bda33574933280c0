package raftnode

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
)

// applySide applies what is committed. Small batches are applied by Run itself
// while nothing is queued, which saves two switches of goroutine; the rest by a
// goroutine of its own, so that heartbeats go on. Whoever applies owns the
// fields without a type of package atomic.
type applySide struct {
	queue   chan applyBatch
	backlog atomic.Int64 // batches queued or being applied by the goroutine
	index   atomic.Uint64
	term    atomic.Uint64
	writing atomic.Bool   // a snapshot; cleared by Run
	every   atomic.Uint64 // entries a snapshot is taken
	size    atomic.Int64  // bytes of the state in the last snapshot

	conf      raftpb.ConfState
	addresses map[uint64]string
	snapped   uint64 // index of the last snapshot that was begun or restored
	bytes     int    // of entries since
}

// applyBatch is what is applied together.
type applyBatch struct {
	entries   []raftpb.Entry
	conf      *raftpb.ConfState // after the entries; nil: unchanged
	addresses map[uint64]string
	restore   string // file of a snapshot
	snapshot  bool   // take one, due or not
}

// hand applies a batch or queues it.
func (n *Node) hand(ctx context.Context, b applyBatch) error {
	size := 0
	for i := range b.entries {
		size += len(b.entries[i].Data)
	}
	if n.apply.backlog.Load() == 0 && size <= inlineApply && b.restore == "" || !n.running {
		return n.applyBatch(b)
	}
	n.apply.backlog.Add(1)
	select {
	case n.apply.queue <- b:
		return nil
	case err := <-n.failures:
		return err
	case <-ctx.Done():
		return errEnd
	}
}

func (n *Node) applyLoop(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			n.cfg.Log.Error("raft: applying halted", "panic", p, "stack", string(debug.Stack()))
			n.failures <- fmt.Errorf("apply: %v", p)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-n.apply.queue:
			if err := n.applyBatch(b); err != nil {
				n.failures <- err
				return
			}
			n.apply.backlog.Add(-1)
		}
	}
}

func (n *Node) applyBatch(b applyBatch) error {
	a := &n.apply
	if b.restore != "" {
		h, err := n.restore(b.restore)
		if err != nil {
			return fmt.Errorf("snapshot %s: %w: %s", b.restore, err, remedy)
		}
		// What waits may be in the snapshot or not.
		n.failAll(api.Errorf(api.Unavailable, "this manager was behind and got the whole state anew; the change may have come to pass"))
		a.conf, a.addresses, a.snapped, a.bytes = h.metadata().ConfState, h.Addresses, h.Index, 0
		n.reached(h.Index, h.Term)
	}
	for i := range b.entries {
		e := &b.entries[i]
		if e.Index <= a.index.Load() {
			continue
		}
		if err := n.applyEntry(e); err != nil {
			return fmt.Errorf("apply entry %d: %w", e.Index, err)
		}
		a.bytes += len(e.Data)
	}
	if b.conf != nil {
		a.conf, a.addresses = *b.conf, b.addresses
	}
	n.maybeSnapshot(b.snapshot)
	return nil
}

func (n *Node) applyEntry(e *raftpb.Entry) error {
	seq, o := uint64(0), outcome{index: e.Index}
	switch {
	case e.Type != raftpb.EntryNormal:
		var cc raftpb.ConfChange
		if err := unmarshal(&cc, e.Data); err != nil {
			return err
		}
		seq = cc.ID
	case len(e.Data) == 0: // a new leader's first entry
	case len(e.Data) < proposalHeader:
		return fmt.Errorf("%w: it has no header", ErrCorrupt)
	default:
		if data := e.Data[proposalHeader:]; len(data) > 0 { // else it is a Barrier's
			result, fatal := n.cfg.Applier.Apply(e.Index, data)
			if fatal != nil {
				return fatal
			}
			o.err = result
		}
		if binary.BigEndian.Uint64(e.Data) == n.cfg.ID {
			seq = binary.BigEndian.Uint64(e.Data[8:])
		}
	}
	n.reached(e.Index, e.Term)
	n.answer(seq, o)
	return nil
}

// reached notes that an entry is applied.
func (n *Node) reached(index, term uint64) {
	n.mu.Lock()
	n.apply.index.Store(index)
	n.answerReaders(index)
	if n.apply.term.Load() < term {
		n.superseded(term)
	}
	n.mu.Unlock()
	if n.apply.term.Swap(term) != term {
		select {
		case n.poke <- struct{}{}:
		default:
		}
	}
}
