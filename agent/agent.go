package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 8 * time.Second

	defaultParallel = 32
	defaultDescribe = 20 * time.Second
)

// Config configures an agent.
type Config struct {
	// Executor runs the tasks. Required.
	Executor exec.Executor
	// Dial returns a connection to a manager, which the agent closes, and the
	// address by which Managers knows it. It is called for each session. Required.
	Dial func(ctx context.Context) (*grpc.ClientConn, string, error)
	// Managers is told which managers there are and how it goes with them; Dial
	// chooses from it. Nil: nobody is told.
	Managers *Managers
	// Dir is where assignments are kept, as <data-root>/swarm/worker. Required.
	Dir string
	// Log is required.
	Log *slog.Logger
	// Now is the node's wall clock, which may be set at any time; nil: the system's.
	Now func() time.Time
	// Notify is told what a manager says of the swarm, in order, from one
	// goroutine; it must not block. Nil: nobody is.
	Notify func(Notice)
	// Failed is told where no session came about, and why; it must not block. Nil:
	// nobody is.
	Failed func(addr string, err error)
	// Overlays is told of the networks that the node has a part in. Nil: nobody is.
	Overlays Overlays
	// TLSInfo describes the node's certificate, for its description; nil: none.
	TLSInfo func() swarm.TLSInfo
	// Parallel bounds how many tasks are prepared at once; 0: 32.
	Parallel int
	// DescribeEvery is how often the node's description is looked at for changes;
	// 0: 20 s.
	DescribeEvery time.Duration
}

// Notice is what a manager said when the session began, or when it changed.
type Notice struct {
	// Node is the node as the managers see it: its role, availability and
	// certificate.
	Node *api.Node
	// Managers are those that can be connected to; empty when not told.
	Managers []swarm.Peer
	// RootCert is the PEM certificate of the swarm's root.
	RootCert []byte
}

func (c Config) withDefaults() (Config, error) {
	if c.Executor == nil || c.Dial == nil || c.Dir == "" || c.Log == nil {
		return c, errors.New("agent: Executor, Dial, Dir and Log are required")
	}
	if c.Managers == nil {
		c.Managers = NewManagers(nil)
	}
	if c.Notify == nil {
		c.Notify = func(Notice) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Failed == nil {
		c.Failed = func(string, error) {}
	}
	if c.Parallel <= 0 {
		c.Parallel = defaultParallel
	}
	if c.DescribeEvery <= 0 {
		c.DescribeEvery = defaultDescribe
	}
	return c, nil
}

// Agent runs a node's tasks. Make one with New, then call Run once.
type Agent struct {
	cfg      Config
	worker   *worker
	reporter *reporter
	link     link
	session  string        // id of the last session; only Run's goroutine uses it
	changed  chan struct{} // capacity 1: the description may have

	withdrawing chan struct{} // slots
}

// New returns an agent. It has no effects until Run.
func New(cfg Config) (*Agent, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	r := newReporter()
	return &Agent{
		cfg: cfg, reporter: r, link: link{changed: make(chan struct{})}, worker: newWorker(cfg, r), changed: make(chan struct{}, 1),
		withdrawing: make(chan struct{}, maxWithdrawing),
	}, nil
}

// Redescribe has the agent look at once whether its node's description changed,
// and tell the managers. It does not block; safe for concurrent use.
func (a *Agent) Redescribe() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// ErrLeaving is the cause of the end of Run's context when the node leaves the
// swarm: the managers are told that it will not come back.
var ErrLeaving = errors.New("the node leaves the swarm")

// Run takes up the tasks on disk, then keeps a session with a manager until ctx
// ends, and says farewell. Tasks run on when it returns. An error means that the
// agent could not begin, or that the node was removed from the swarm (NotFound).
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer a.worker.wait()
	defer stop()
	if err := a.worker.load(ctx); err != nil {
		return fmt.Errorf("take up tasks: %w", err)
	}
	delay, tries := firstBackoff, 0
	for ctx.Err() == nil {
		began, err := a.runSession(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if api.Is(err, api.NotFound) {
			return err
		}
		if began {
			delay, tries = firstBackoff, 0
		}
		if errors.Is(err, errDescription) {
			a.cfg.Log.Debug("a new session", "reason", err)
			continue
		}
		wait := delay/2 + rand.N(delay/2+1)
		a.cfg.Log.Warn("no session with a manager", "err", err, "retry", wait)
		if !sleep(ctx, wait) {
			return nil
		}
		// Doubled once all managers were tried: where most are silent, the one that
		// comes back is to be found within the grace period.
		all := max(len(a.cfg.Managers.List()), 1)
		if tries++; tries%all == 0 {
			delay = min(2*delay, maxBackoff/time.Duration(all))
		}
	}
	return nil
}

// sleep reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
