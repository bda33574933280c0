package raftnode

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"
)

// Applier is the state machine: package store's Store. Its methods are called
// one after the other, though not always from the same goroutine.
type Applier interface {
	// Apply takes a committed entry. result is for the proposer; fatal ends Run.
	Apply(index uint64, data []byte) (result, fatal error)
	// Snapshot returns a function that writes the state as it is now. It is
	// called later, from another goroutine, while entries are applied.
	Snapshot() func(io.Writer) error
	// Restore replaces the state.
	Restore(io.Reader) error
}

// Transport carries messages to other members. What is lost is sent again.
type Transport interface {
	// Send takes a message for another member, which is to be given to its Step.
	// It must not block; messages to one member should arrive in order. If it
	// can't be sent, Unreachable should be called.
	Send(to Member, message []byte)
	// SendSnapshot carries a snapshot to another member's StepSnapshot and
	// returns when that has returned.
	SendSnapshot(ctx context.Context, to Member, message []byte, data io.Reader) error
	// Propose gives an entry to another member's Accept or Offer and returns what
	// that said; but if it took the entry, perhaps only when ctx ends. An error of
	// the way there and back is of class Unavailable or DeadlineExceeded.
	Propose(ctx context.Context, to Member, term uint64, entry []byte) error
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
	// FS is where Dir is; nil: the operating system's files.
	FS FS
	// Now measures how long the disk takes; nil: time.Now.
	Now func() time.Time

	// Tick is the unit of time; 0: 100 ms. ElectionTicks (0: 10) and
	// HeartbeatTicks (0: 2) count in it. A cluster of one does not tick.
	Tick                          time.Duration
	ElectionTicks, HeartbeatTicks int
	// Patience is how long a request waits while nobody leads; 0: 4 s, in which an
	// election comes to an end.
	Patience time.Duration
	// ForceNewCluster makes Open take this member for the only one, for ever: all
	// that is in its log counts as committed. Only for a cluster whose quorum is
	// lost: if the others live on, there are two clusters.
	ForceNewCluster bool
	// Address is where others reach this member; ForceNewCluster needs it.
	Address string
	// SnapshotInterval is after how many entries a snapshot is taken; 0: 10,000.
	// Where the state takes more than 1 MiB, one waits until the entries since the
	// last come to a quarter of the state's size, or are eight times as many. One
	// is also taken after as many bytes of entries as the state has, but not less
	// than 64 MiB and not more than 256.
	SnapshotInterval uint64
	// KeepOldSnapshots is how many are kept besides the newest.
	KeepOldSnapshots uint64
	// SlowFollowerEntries is how many entries before a snapshot stay for members
	// that lag; 0: 500.
	SlowFollowerEntries uint64
}

const (
	maxPending    = 4096     // requests that wait for Run
	maxMessages   = 1024     // messages from peers that wait for Run
	maxMessage    = 64 << 20 // bytes of one message from a peer
	maxInflight   = 256      // append messages to a peer
	maxFlying     = 16 << 20 // bytes of them
	maxAppendSize = 1 << 20  // bytes of an append message of more than one entry
	maxUncommit   = 64 << 20 // bytes of proposals under way
	maxProposal   = 16 << 20 // bytes of one
	maxEntry      = maxProposal + 1<<10
	commitHold    = 2 * time.Millisecond // see hold
	gatherHold    = 2 * time.Millisecond // see gather
	maxCrowd      = 64                   // proposals; more wait for no more
	maxVain       = 64                   // rounds
	maxBacklog    = 128                  // batches that wait to be applied
	inlineApply   = 256 << 10
	snapshotBytes = 64 << 20  // of entries after which a snapshot may be taken
	snapshotMost  = 256 << 20 // of entries after which one is taken
	snapshotSmall = 1 << 20   // bytes of a state that may always be written
	snapshotShare = 4         // of a larger state's size: what entries come to first
	snapshotDelay = 8         // times SnapshotInterval, at most
	spaceRetry    = time.Second
	resendPause   = 500 * time.Millisecond // before an entry goes to the leader again
	maxRecent     = 1 << 14                // forwarded entries that the leader remembers
	campaignStep  = 80 * time.Millisecond  // between two members that ask for votes after a leader was lost
	suspectRounds = 3
)

func (c Config) withDefaults() (Config, error) {
	if c.ID == 0 || c.Dir == "" || c.Applier == nil || c.Log == nil {
		return c, errors.New("raftnode: ID, Dir, Applier and Log are required")
	}
	if c.FS == nil {
		c.FS = osFS{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Tick == 0 {
		c.Tick = 100 * time.Millisecond
	}
	if c.ElectionTicks == 0 {
		c.ElectionTicks = 10
	}
	if c.HeartbeatTicks == 0 {
		c.HeartbeatTicks = 2
	}
	if c.Patience == 0 {
		c.Patience = 4 * time.Second
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
	// IsLeader also means that all entries of earlier terms are applied here, and
	// that the log can be written to.
	IsLeader      bool
	Applied       uint64
	SnapshotIndex uint64 // of the newest snapshot
	Voters        []uint64
	Learners      []uint64
	Members       []Member // all of them, by id
	// Err is why the log can't be written to: the disk is full (until there is
	// space), or what Run ended with.
	Err error
}

// Member is a member as the cluster's configuration has it.
type Member struct {
	ID      uint64
	Address string
	Voter   bool // as Status tells it
}
