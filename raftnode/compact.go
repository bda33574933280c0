package raftnode

import (
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// maybeSnapshot begins a snapshot when enough entries have come since the last.
func (n *Node) maybeSnapshot() {
	if n.writing || n.applied-n.snapped < n.cfg.SnapshotInterval {
		return
	}
	term, err := n.storage.Term(n.applied)
	if err != nil {
		return
	}
	n.writing = true
	meta := raftpb.SnapshotMetadata{ConfState: n.conf, Index: n.applied, Term: term}
	write := n.cfg.Applier.Snapshot()
	go func() {
		n.snapEnd <- snapDone{meta, writeSnapshot(n.cfg.Dir, &meta, n.cfg.Sealer, write)}
	}()
}

// snapshotDone drops what the snapshot replaces. A snapshot that could not be
// written is tried again after as many entries; the log is whole without it.
func (n *Node) snapshotDone(s snapDone) error {
	n.writing = false
	if s.err != nil {
		n.cfg.Log.Error("raft: a snapshot could not be written; the log stays as it is", "index", s.meta.Index, "err", s.err)
		n.snapped = n.applied
		return nil
	}
	if s.meta.Index <= n.snapped {
		return nil
	}
	n.snapped = s.meta.Index
	if _, err := n.storage.CreateSnapshot(s.meta.Index, &s.meta.ConfState, nil); err != nil {
		return fmt.Errorf("raft: %w", err)
	}
	if err := dropSnapshots(n.cfg.Dir, n.cfg.KeepOldSnapshots); err != nil {
		n.cfg.Log.Warn("raft: an old snapshot can't be removed", "err", err)
	}
	if err := n.wal.drop(s.meta.Index); err != nil {
		n.cfg.Log.Warn("raft: an old log segment can't be removed", "err", err)
	}
	first, err := n.storage.FirstIndex()
	if err != nil {
		return fmt.Errorf("raft: %w", err)
	}
	if keep := s.meta.Index - min(s.meta.Index, n.cfg.SlowFollowerEntries); keep > first {
		if err := n.storage.Compact(keep); err != nil {
			return fmt.Errorf("raft: %w", err)
		}
	}
	return nil
}

// quiet passes raft's own log on, its information as debugging.
type quiet struct{ log *slog.Logger }

var _ raft.Logger = quiet{}

func (q quiet) Debug(v ...any)              { q.log.Debug("raft: " + fmt.Sprint(v...)) }
func (q quiet) Debugf(f string, v ...any)   {}
func (q quiet) Info(v ...any)               { q.log.Debug("raft: " + fmt.Sprint(v...)) }
func (q quiet) Infof(f string, v ...any)    { q.log.Debug("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Warning(v ...any)            { q.log.Warn("raft: " + fmt.Sprint(v...)) }
func (q quiet) Warningf(f string, v ...any) { q.log.Warn("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Error(v ...any)              { q.log.Error("raft: " + fmt.Sprint(v...)) }
func (q quiet) Errorf(f string, v ...any)   { q.log.Error("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Fatal(v ...any)              { panic("raft: " + fmt.Sprint(v...)) }
func (q quiet) Fatalf(f string, v ...any)   { panic("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Panic(v ...any)              { panic("raft: " + fmt.Sprint(v...)) }
func (q quiet) Panicf(f string, v ...any)   { panic("raft: " + fmt.Sprintf(f, v...)) }
