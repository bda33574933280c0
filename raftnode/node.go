package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode/disk"
)

// Node is one member of the cluster. Open it, call Run once; all other methods
// but Bootstrap are safe for concurrent use.
type Node struct {
	cfg      Config
	lock     io.Closer
	requests chan request
	messages chan raftpb.Message
	poke     chan struct{} // capacity 1: the applied term has changed
	done     chan struct{} // closed when Run has ended
	seq      atomic.Uint64 // of proposals; begins at random, see Open
	status   atomic.Pointer[Status]
	changed  atomic.Pointer[chan struct{}]

	// What follows belongs to Run's goroutine.
	wal       *wal
	storage   *raft.MemoryStorage
	raw       *raft.RawNode
	hard      raftpb.HardState
	conf      raftpb.ConfState
	addresses map[uint64]string
	snapped   uint64   // index of the newest snapshot
	changes   []uint64 // seqs of membership changes proposed since the last Ready
	proposals []request
	gathered  int // bytes of proposals
	reads     reads
	incoming  *incoming
	reseal    *reseal
	full      error // the disk is
	running   bool
	recent    recent // entries of other members' proposals
	gather    gather
	held      held
	ticks     uint64
	even      bool              // ticks are: somebody leads
	heard     map[uint64]uint64 // at which tick a member last sent something
	renew     bool              // members have changed since the last publish

	apply    applySide
	tasks    sync.WaitGroup // goroutines that Run waits for
	snapEnd  chan snapDone
	failures chan error  // of the applying goroutine
	taking   atomic.Bool // a snapshot from another member

	// mu guards what Run and the applying goroutine share.
	mu      sync.Mutex
	waiting map[uint64]waiter // proposals under way
	readers []reader          // reads that wait for an entry to be applied
	keys    key
}

// outcome is the end of a request.
type outcome struct {
	index uint64
	err   error
}

// Open reads the log and snapshots in Dir and restores the applier. Conflict if
// another process has the folder open; an error that wraps ErrCorrupt names the
// damaged file and says what to do; ErrKey: it is encrypted and the key is not
// there. The log of a new member is empty: then call Bootstrap for the first
// member of a cluster. Without error Run must be called, or Close.
func Open(cfg Config) (_ *Node, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	n := &Node{
		cfg: cfg, storage: raft.NewMemoryStorage(), done: make(chan struct{}), poke: make(chan struct{}, 1),
		requests: make(chan request, maxPending), messages: make(chan raftpb.Message, maxMessages),
		waiting: map[uint64]waiter{}, addresses: map[uint64]string{},
		heard: map[uint64]uint64{}, snapEnd: make(chan snapDone, 1), failures: make(chan error, 1),
	}
	n.keys.sealer = cfg.Sealer
	n.apply.every.Store(cfg.SnapshotInterval)
	n.apply.queue = make(chan applyBatch, maxBacklog)
	// Entries of an earlier run may still be applied: their seqs must not be ours.
	n.seq.Store(rand.Uint64())
	n.lock, err = cfg.FS.Lock(filepath.Join(cfg.Dir, "lock"))
	if errors.Is(err, disk.ErrLocked) {
		return nil, api.Errorf(api.Conflict, "the raft log in %s is open in another process: stop that one first", cfg.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := n.load(); err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	if cfg.ForceNewCluster {
		if err := n.forceNewCluster(); err != nil {
			return nil, fmt.Errorf("raftnode: %w", err)
		}
	}
	n.raw, err = raft.NewRawNode(&raft.Config{
		ID: cfg.ID, ElectionTick: cfg.ElectionTicks, HeartbeatTick: cfg.HeartbeatTicks,
		Storage: n.storage, Applied: n.snapped,
		MaxSizePerMsg: maxAppendSize, MaxInflightMsgs: maxInflight, MaxInflightBytes: maxFlying,
		MaxUncommittedEntriesSize: maxUncommit, CheckQuorum: true, PreVote: true, StepDownOnRemoval: true,
		DisableProposalForwarding: true, Logger: quiet{cfg.Log},
	})
	if err != nil {
		return nil, fmt.Errorf("raftnode: %w", err)
	}
	first := make(chan struct{})
	n.changed.Store(&first)
	n.publish()
	return n, nil
}

// Close ends a Node whose Run was never called.
func (n *Node) Close() error {
	var err error
	if n.wal != nil {
		err = n.wal.Close()
	}
	return errors.Join(err, n.lock.Close())
}

// load restores the newest snapshot and replays the log after it.
func (n *Node) load() error {
	if err := n.removeTemporary(); err != nil {
		return err
	}
	r := &replay{}
	if err := n.loadSnapshot(r); err != nil {
		return err
	}
	n.wal = &wal{fs: n.cfg.FS, dir: n.cfg.Dir, id: n.cfg.ID, sealer: n.cfg.Sealer, now: n.cfg.Now, slow: n.warnSlow}
	if err := openWAL(n.wal, r); err != nil {
		return err
	}
	if r.torn >= 0 {
		n.cfg.Log.Warn("raft log: the last write was torn by a crash; nobody was told that it is there, and it is dropped", "file", n.wal.path, "offset", n.wal.off, "bytes", r.torn)
	}
	if err := r.finish(n.wal.state); err != nil {
		return fmt.Errorf("%s: %w", n.cfg.Dir, err)
	}
	n.hard = r.state
	if err := n.storage.SetHardState(r.state); err != nil {
		return err
	}
	return n.storage.Append(r.entries)
}

// removeTemporary removes what a crash left half-done.
func (n *Node) removeTemporary() error {
	names, err := n.cfg.FS.ReadDir(n.cfg.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			if err := n.cfg.FS.Remove(filepath.Join(n.cfg.Dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Node) loadSnapshot(r *replay) error {
	names, err := snapshots(n.cfg.FS, n.cfg.Dir)
	if err != nil || len(names) == 0 {
		return err
	}
	path := filepath.Join(n.cfg.Dir, names[0])
	h, err := n.restore(path)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w: %s", path, err, remedy)
	}
	n.adopt(h)
	n.apply.index.Store(h.Index)
	n.apply.term.Store(h.Term)
	n.apply.conf, n.apply.addresses, n.apply.snapped = n.conf, maps.Clone(n.addresses), h.Index
	r.base, r.baseTerm = h.Index, h.Term
	return n.storage.ApplySnapshot(raftpb.Snapshot{Metadata: h.metadata()})
}

// adopt takes over what a snapshot says of the members.
func (n *Node) adopt(h *snapshotHead) {
	n.conf, n.snapped, n.renew = h.metadata().ConfState, h.Index, true
	n.addresses = maps.Clone(h.Addresses)
	if n.addresses == nil {
		n.addresses = map[uint64]string{}
	}
}

// Empty reports whether the log was never written to. Before Run only.
func (n *Node) Empty() bool {
	last, err := n.storage.LastIndex()
	return err == nil && last == 0
}

// Bootstrap makes this member the first of a new cluster. It is durable on
// return. Before Run only. Exists if the log is not empty.
func (n *Node) Bootstrap(address string) error {
	if !n.Empty() {
		return api.Errorf(api.Exists, "the raft log in %s belongs to a cluster already", n.cfg.Dir)
	}
	if err := n.raw.Bootstrap([]raft.Peer{{ID: n.cfg.ID, Context: []byte(address)}}); err != nil {
		return err
	}
	return n.ready(context.Background())
}

// Status returns the newest status.
func (n *Node) Status() Status {
	st := *n.status.Load()
	st.Applied = n.apply.index.Load()
	return st
}

// Changed returns a channel that is closed when leader, term, members or Err
// have changed since the call.
func (n *Node) Changed() <-chan struct{} { return *n.changed.Load() }

// publish makes the newest status if it differs in more than what was applied,
// and wakes who waits for a change.
func (n *Node) publish() {
	s := n.raw.BasicStatus()
	lead := s.RaftState == raft.StateLeader && n.apply.term.Load() == s.Term && n.full == nil
	old := n.status.Load()
	if old != nil && !n.renew && old.IsLeader == lead && old.Leader == s.Lead && old.Term == s.Term &&
		old.SnapshotIndex == n.snapped && (old.Err == nil) == (n.full == nil) {
		return
	}
	if s.Lead != 0 && old != nil && n.reads.id != 0 && (old.Leader != s.Lead || n.renew) {
		// The question went to nobody, or to who leads no more; or raft dropped the
		// answer, as it does with those of leaders that are no members yet.
		n.reads.ask(n)
	}
	n.renew = false
	st := &Status{ID: n.cfg.ID, Leader: s.Lead, Term: s.Term, IsLeader: lead, SnapshotIndex: n.snapped,
		Voters: n.conf.Voters, Learners: n.conf.Learners, Members: n.members(), Err: n.full}
	n.status.Store(st)
	n.wake()
}

func (n *Node) members() []Member {
	var ms []Member
	for _, id := range n.conf.Voters {
		ms = append(ms, Member{ID: id, Address: n.addresses[id], Voter: true})
	}
	for _, id := range n.conf.Learners {
		ms = append(ms, Member{ID: id, Address: n.addresses[id]})
	}
	slices.SortFunc(ms, func(a, b Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return ms
}

func (n *Node) wake() {
	next := make(chan struct{})
	if old := n.changed.Swap(&next); old != nil {
		close(*old)
	}
}
