package raftnode

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/legion-swarm/legion/api"
)

// snapDone is the end of writing a snapshot.
type snapDone struct {
	head *snapshotHead
	key  key
	size int64 // of the applier's data, in bytes
	err  error
}

// key is a sealer and how many came before it.
type key struct {
	sealer Sealer
	number int
}

const snapshotTemporary = "snapshot.tmp"

// maybeSnapshot begins a snapshot if one is due. Whoever applies calls it.
func (n *Node) maybeSnapshot(force bool) {
	a := &n.apply
	index := a.index.Load()
	if index == 0 || len(a.conf.Voters) == 0 || !(a.due() || force) || !n.running || a.writing.Swap(true) {
		return
	}
	a.snapped, a.bytes = index, 0
	h := &snapshotHead{Index: index, Term: a.term.Load(), Voters: a.conf.Voters, Learners: a.conf.Learners, Addresses: a.addresses}
	write, k := n.cfg.Applier.Snapshot(), n.key()
	n.tasks.Go(func() {
		size, err := writeSnapshot(n.cfg.FS, filepath.Join(n.cfg.Dir, snapshotTemporary), k.sealer, h, write)
		n.snapEnd <- snapDone{h, k, size, err}
	})
}

// due reports whether there is so much log since the last snapshot that another
// is worth its cost, which grows with the state: see Config.SnapshotInterval.
func (a *applySide) due() bool {
	size, log := a.size.Load(), int64(a.bytes)
	entries, every := a.index.Load()-a.snapped, a.every.Load()
	switch {
	case log >= max(snapshotBytes, min(size, snapshotMost)), entries/snapshotDelay >= every:
		return true
	case entries < every:
		return false
	}
	return size < snapshotSmall || log >= size/snapshotShare
}

// restore gives a snapshot file to the applier.
func (n *Node) restore(path string) (*snapshotHead, error) {
	h, r, file, err := openSnapshot(n.cfg.FS, path, n.key().sealer)
	if err != nil {
		return nil, err
	}
	err = n.cfg.Applier.Restore(r)
	if err == nil {
		err = r.drain()
	}
	n.apply.size.Store(r.size)
	return h, errors.Join(err, file.Close())
}

// snapshotDone drops what a snapshot replaces. One that could not be written is
// tried again after as many entries; the log is whole without it.
func (n *Node) snapshotDone(s snapDone) error {
	n.apply.writing.Store(false)
	if s.err == nil {
		n.apply.size.Store(s.size)
	}
	if s.err == nil && s.head.Index >= n.snapped {
		s.err = n.adoptSnapshot(s.head)
	}
	if s.err != nil {
		n.cfg.Log.Error("raft: a snapshot could not be written; the log stays as it is", "index", s.head.Index, "err", s.err)
	}
	if n.reseal != nil {
		return n.resealed(s)
	}
	n.publish()
	return nil
}

// adoptSnapshot makes a snapshot the one that a start uses.
func (n *Node) adoptSnapshot(h *snapshotHead) error {
	from, to := filepath.Join(n.cfg.Dir, snapshotTemporary), filepath.Join(n.cfg.Dir, snapshotName(h.Index, h.Term))
	if err := n.cfg.FS.Rename(from, to); err != nil {
		return err
	}
	if err := n.cfg.FS.SyncDir(n.cfg.Dir); err != nil {
		return err
	}
	if h.Index > n.snapped {
		n.snapped = h.Index
		conf := h.metadata().ConfState
		if _, err := n.storage.CreateSnapshot(h.Index, &conf, nil); err != nil {
			return fmt.Errorf("compact: %w", err)
		}
	}
	n.compact(h.Index)
	return nil
}

// compact drops what is older than a snapshot. What can't be dropped now stays
// until the next one.
func (n *Node) compact(index uint64) {
	if err := dropSnapshots(n.cfg.FS, n.cfg.Dir, n.cfg.KeepOldSnapshots); err != nil {
		n.cfg.Log.Warn("raft: an old snapshot can't be removed", "err", err)
	}
	if err := n.wal.drop(index); err != nil {
		n.cfg.Log.Warn("raft: an old segment of the log can't be removed", "err", err)
	}
	first, err := n.storage.FirstIndex()
	if err != nil || index <= n.cfg.SlowFollowerEntries || index-n.cfg.SlowFollowerEntries < first {
		return
	}
	if err := n.storage.Compact(index - n.cfg.SlowFollowerEntries); err != nil {
		n.cfg.Log.Warn("raft: the log in memory can't be shortened", "err", err)
	}
}

// Retention says when snapshots are taken and what is kept, as Config's fields
// of the same names.
type Retention struct {
	SnapshotInterval, KeepOldSnapshots, SlowFollowerEntries uint64
}

// SetRetention changes it while Run runs. 0 means the default, as in Config.
func (n *Node) SetRetention(ctx context.Context, r Retention) error {
	return n.do(ctx, func() error {
		c := n.cfg
		c.SnapshotInterval, c.KeepOldSnapshots, c.SlowFollowerEntries = r.SnapshotInterval, r.KeepOldSnapshots, r.SlowFollowerEntries
		c, err := c.withDefaults()
		if err != nil {
			return err
		}
		n.apply.every.Store(c.SnapshotInterval)
		n.cfg.KeepOldSnapshots, n.cfg.SlowFollowerEntries = c.KeepOldSnapshots, c.SlowFollowerEntries
		return nil
	})
}

// reseal is a change of keys under way.
type reseal struct {
	number int
	reply  chan error
}

// key is what new files are written with.
func (n *Node) key() key {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keys
}

// Reseal makes all that is on disk be encrypted by s (nil: in clear) and
// nothing need an earlier key. Until it returns without error, a start needs a
// Sealer that opens what either key sealed. Conflict if it is under way already.
func (n *Node) Reseal(ctx context.Context, s Sealer) error {
	rs := &reseal{reply: make(chan error, 1)}
	err := n.do(ctx, func() error {
		switch {
		case n.reseal != nil:
			return api.Errorf(api.Conflict, "the key of the raft log is being changed already")
		case n.apply.index.Load() == 0:
			return api.Errorf(api.Unavailable, "this manager has not got the cluster's state yet: change the key later")
		}
		n.mu.Lock()
		n.keys = key{s, n.keys.number + 1}
		rs.number = n.keys.number
		n.mu.Unlock()
		n.wal.sealer, n.reseal = s, rs
		return n.hand(ctx, applyBatch{snapshot: true})
	})
	if err != nil {
		return err
	}
	select {
	case err := <-rs.reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.done:
		return n.stopped()
	}
}

// resealed goes on with a change of keys when a snapshot is done.
func (n *Node) resealed(s snapDone) error {
	if s.key.number != n.reseal.number { // it was begun before the change
		return n.hand(context.Background(), applyBatch{snapshot: true})
	}
	err, broken := s.err, false
	if err == nil {
		err = n.rewrite(s.head)
		broken = err != nil && !errors.Is(err, errNoSpace)
	}
	n.reseal.reply <- err
	n.reseal = nil
	n.publish()
	if broken {
		return err
	}
	return nil
}

// rewrite leaves a log without anything that is older than the snapshot.
func (n *Node) rewrite(h *snapshotHead) error {
	last, err := n.storage.LastIndex()
	if err != nil {
		return err
	}
	b := batch{state: &n.hard}
	if last > h.Index {
		if b.entries, err = n.storage.Entries(h.Index+1, last+1, 1<<62); err != nil {
			return err
		}
	}
	if err := n.wal.rewrite(b); err != nil {
		return err
	}
	return dropSnapshots(n.cfg.FS, n.cfg.Dir, 0)
}
