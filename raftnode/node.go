package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

// Applier is the state machine: package store's Store. Its methods are called
// from Run's goroutine, but for what Snapshot returns.
type Applier interface {
	// Apply takes a committed entry. result is for the proposer; fatal ends Run.
	Apply(index uint64, data []byte) (result, fatal error)
	// Snapshot returns a function that writes the state as it is now. It is
	// called later, from another goroutine, while entries are applied.
	Snapshot() func(io.Writer) error
	// Restore replaces the state.
	Restore(io.Reader) error
}

// Transport carries messages to other members. Send must not block; what can't
// be sent is dropped and Unreachable is called.
type Transport interface {
	Send(m raftpb.Message)
}

// Config is what a Node needs.
type Config struct {
	// ID of this member, unique for ever in the cluster. Required.
	ID uint64
	// Dir is the folder for log and snapshots. Required.
	Dir string
	// Applier is required.
	Applier Applier
	// Transport may be nil for a cluster of one.
	Transport Transport
	// Sealer encrypts what is on disk; nil: in clear.
	Sealer Sealer
	// Log is required.
	Log *slog.Logger

	// Tick is the unit of time; 0: 100 ms. ElectionTicks (0: 10) and
	// HeartbeatTicks (0: 1) count in it.
	Tick                          time.Duration
	ElectionTicks, HeartbeatTicks int
	// SnapshotInterval is after how many entries a snapshot is taken; 0: 10,000.
	SnapshotInterval uint64
	// KeepOldSnapshots is how many are kept besides the newest.
	KeepOldSnapshots uint64
	// SlowFollowerEntries is how many entries before a snapshot stay for members
	// that lag; 0: 500.
	SlowFollowerEntries uint64
}

func (c Config) withDefaults() (Config, error) {
	if c.ID == 0 || c.Dir == "" || c.Applier == nil || c.Log == nil {
		return c, errors.New("raftnode: ID, Dir, Applier and Log are required")
	}
	if c.Tick == 0 {
		c.Tick = 100 * time.Millisecond
	}
	if c.ElectionTicks == 0 {
		c.ElectionTicks = 10
	}
	if c.HeartbeatTicks == 0 {
		c.HeartbeatTicks = 1
	}
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = 10_000
	}
	if c.SlowFollowerEntries == 0 {
		c.SlowFollowerEntries = 500
	}
	return c, nil
}

// Status is what a member knows of its cluster.
type Status struct {
	ID, Leader, Term uint64
	// IsLeader also means that all entries of earlier terms are applied here.
	IsLeader      bool
	Applied       uint64
	Voters        []uint64
	Learners      []uint64
	Err           error // why the log can't be written to, if it can't
	SnapshotIndex uint64
}

// Member is a member as raft's configuration has it.
type Member struct {
	ID      uint64
	Address string
}

// Node is one member of the cluster. Open it, call Run once; all other methods
// are safe for concurrent use.
type Node struct {
	cfg     Config
	lock    *os.File
	wal     *wal
	storage *raft.MemoryStorage
	raw     *raft.RawNode
	conf    raftpb.ConfState
	applied uint64
	snapped uint64 // index of the newest snapshot
	writing bool   // a snapshot
	snapEnd chan snapDone

	requests chan request
	messages chan raftpb.Message
	done     chan struct{} // closed when Run has ended

	status  atomic.Pointer[Status]
	changed atomic.Pointer[chan struct{}]

	// waiting has the proposals under way by seq; only Run's goroutine uses it.
	waiting map[uint64]chan outcome
	seq     uint64
}

type snapDone struct {
	meta raftpb.SnapshotMetadata
	err  error
}

type outcome struct {
	index uint64
	err   error
}

const (
	maxPending    = 4096      // requests
	maxMessages   = 4096      // from peers
	maxInflight   = 256       // append messages to a peer
	maxAppendSize = 1 << 20   // bytes an append message
	maxUncommit   = 256 << 20 // bytes of proposals under way
)

// Open reads the log and snapshots in Dir and restores the applier. Conflict if
// another process has the folder open; an error that wraps ErrCorrupt names the
// damaged file and says what to do. The log of a new member is empty: then call
// Bootstrap for the first member of a cluster.
func Open(cfg Config) (_ *Node, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	n := &Node{
		cfg: cfg, storage: raft.NewMemoryStorage(), done: make(chan struct{}), snapEnd: make(chan snapDone, 1),
		requests: make(chan request, maxPending), messages: make(chan raftpb.Message, maxMessages),
		waiting: map[uint64]chan outcome{},
		seq:     rand.Uint64(), // not that of an earlier run, whose entries may still be applied
	}
	if n.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if err := n.load(); err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	n.raw, err = raft.NewRawNode(&raft.Config{
		ID: cfg.ID, ElectionTick: cfg.ElectionTicks, HeartbeatTick: cfg.HeartbeatTicks, Storage: n.storage,
		Applied: n.applied, MaxSizePerMsg: maxAppendSize, MaxInflightMsgs: maxInflight, MaxUncommittedEntriesSize: maxUncommit,
		CheckQuorum: true, PreVote: true, Logger: quiet{cfg.Log}, DisableProposalForwarding: true,
	})
	if err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	first := make(chan struct{})
	n.changed.Store(&first)
	n.publish()
	return n, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(api.Errorf(api.Conflict, "raft log %s is open in another process: stop that one first", dir), f.Close())
	}
	return f, nil
}

func (n *Node) close() error {
	var err error
	if n.wal != nil {
		err = n.wal.Close()
	}
	return errors.Join(err, n.lock.Close())
}

// load restores the newest snapshot and replays the log after it.
func (n *Node) load() error {
	if err := n.loadSnapshot(); err != nil {
		return err
	}
	var state raftpb.HardState
	var entries []raftpb.Entry
	w, torn, err := openWAL(n.cfg.Dir, func(t recordType, b []byte) error {
		switch t {
		case recordEntry:
			e, err := decodeEntry(b, n.cfg.Sealer)
			if err != nil {
				return err
			}
			if e.Index > n.applied {
				entries = appendEntry(entries, e)
			}
			return nil
		case recordState:
			return state.Unmarshal(b)
		case recordMark:
			return nil
		}
		return fmt.Errorf("%w: unknown record type %d: written by a newer version?", ErrCorrupt, t)
	})
	n.wal = w
	if err != nil {
		return err
	}
	if torn {
		n.cfg.Log.Warn("raft log: the last record was not written whole before a crash; it was never acknowledged and is dropped", "dir", n.cfg.Dir)
	}
	if len(entries) > 0 && entries[0].Index != n.applied+1 {
		return fmt.Errorf("%w: the log begins at entry %d, the snapshot ends at %d: restore this manager from another one", ErrCorrupt, entries[0].Index, n.applied)
	}
	last := n.applied + uint64(len(entries))
	if state.Commit > last {
		return fmt.Errorf("%w: entry %d was committed, the log ends at %d: restore this manager from another one", ErrCorrupt, state.Commit, last)
	}
	state.Commit = max(state.Commit, n.applied)
	if err := n.storage.SetHardState(state); err != nil {
		return err
	}
	return n.storage.Append(entries)
}

// appendEntry adds an entry, which replaces those of an earlier term from its
// index on.
func appendEntry(entries []raftpb.Entry, e raftpb.Entry) []raftpb.Entry {
	if len(entries) > 0 && e.Index <= entries[len(entries)-1].Index {
		if e.Index < entries[0].Index {
			return append(entries[:0], e)
		}
		entries = entries[:e.Index-entries[0].Index]
	}
	return append(entries, e)
}

func (n *Node) loadSnapshot() error {
	names, err := snapshots(n.cfg.Dir)
	if err != nil || len(names) == 0 {
		return err
	}
	path := filepath.Join(n.cfg.Dir, names[0])
	meta, r, err := openSnapshot(path, n.cfg.Sealer)
	if err != nil {
		return err
	}
	if err := errors.Join(n.cfg.Applier.Restore(r), r.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	n.conf, n.applied, n.snapped = meta.ConfState, meta.Index, meta.Index
	return n.storage.ApplySnapshot(raftpb.Snapshot{Metadata: *meta})
}

// Empty reports whether the log was never written to.
func (n *Node) Empty() bool {
	last, err := n.storage.LastIndex()
	return err == nil && last == 0
}

// Bootstrap makes this node the first member of a new cluster. Before Run only.
func (n *Node) Bootstrap(address string) error {
	if !n.Empty() {
		return api.Errorf(api.Exists, "raft log %s belongs to a cluster already", n.cfg.Dir)
	}
	return n.raw.Bootstrap([]raft.Peer{{ID: n.cfg.ID, Context: []byte(address)}})
}

// Status returns the newest status.
func (n *Node) Status() Status { return *n.status.Load() }

// Changed returns a channel that is closed when the leader, the term or the
// members have changed since the call.
func (n *Node) Changed() <-chan struct{} { return *n.changed.Load() }

// call sends a request to Run and waits for its outcome.
func (n *Node) call(ctx context.Context, r request) (uint64, error) {
	r.reply = make(chan outcome, 1)
	select {
	case n.requests <- r:
	case <-n.done:
		return 0, n.stopped()
	case <-ctx.Done():
		return 0, api.Errorf(api.DeadlineExceeded, "the raft log did not take the request: %w", ctx.Err())
	}
	select {
	case o := <-r.reply:
		return o.index, o.err
	case <-n.done:
		select {
		case o := <-r.reply:
			return o.index, o.err
		default:
			return 0, n.stopped()
		}
	case <-ctx.Done():
		return 0, api.Errorf(api.DeadlineExceeded, "no quorum of managers has acknowledged the change in time; it may still come to pass: %w", ctx.Err())
	}
}

func (n *Node) stopped() error {
	if err := n.Status().Err; err != nil {
		return api.Errorf(api.Unavailable, "the raft log is closed: %w", err)
	}
	return api.Errorf(api.Unavailable, "the raft log is closed: the manager is stopping")
}
