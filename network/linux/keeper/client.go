package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/crypt"
)

const (
	// rest is how long a keeper that holds nothing goes on while there is a daemon.
	rest = time.Minute
	// A keeper that ends within healthy of its start is started again after
	// firstPause, and twice as long each time, up to maxPause.
	healthy    = 10 * time.Second
	firstPause = 200 * time.Millisecond
	maxPause   = 30 * time.Second
)

var errClosed = errors.New("the daemon has left the keeper")

// Config is for NewClient. All is required.
type Config struct {
	// Socket is the keeper's, an absolute path in a folder that exists; a file for
	// what it says as it dies is beside it.
	Socket string
	// Command starts a keeper: a program's path and arguments, to which the
	// socket's is added.
	Command []string
	// InHost calls a function on a thread in the host's network namespace, which is
	// to be the keeper's.
	InHost func(func() error) error
	// Lost is called when a keeper that may have held something has ended, and when
	// it is time to try again to start one, from any goroutine. It does not block,
	// and calls nothing of the client.
	Lost func()
	Log  *slog.Logger
}

// Client is the daemon's side of a keeper: it starts one when there is something to
// hold, takes over the one that is there, and ends one that has held nothing for a
// while. All methods are safe for concurrent use; those that talk to the keeper wait
// for each other.
type Client struct {
	cfg     Config
	log     *slog.Logger
	readers sync.WaitGroup
	turn    chan struct{} // held by who talks to the keeper

	// With the turn.
	link   *link // nil: there is none
	begun  time.Time
	pause  time.Duration
	resume time.Time // no keeper is started before
	again  *time.Timer
	ended  bool // Close was called

	mu          sync.Mutex
	set, newest map[string]*network.Zone // names that were set, and that are to be
	named       bool                     // set is told
	settings    *Settings                // nil: not known
	peers       map[string]Peers         // with settings
	at          netip.AddrPort           // what the keeper holds
	taps        map[string]Tap
	resolvers   map[string]Resolver
	status      Status // that was last known
	lost        uint64 // keepers that ended by themselves
	idle        *time.Timer
}

// NewClient returns a client. Nothing is started.
func NewClient(cfg Config) *Client {
	return &Client{cfg: cfg, log: cfg.Log, turn: make(chan struct{}, 1), taps: map[string]Tap{}, resolvers: map[string]Resolver{}, status: Status{Counts: crypt.NewNode(time.Now).Counts()}}
}

// Find takes over a keeper that is there.
func (c *Client) Find() error { return c.with(false, func(*link) error { return nil }) }

// Close leaves the keeper, which goes on, unless it holds nothing.
func (c *Client) Close() error {
	err := c.leave()
	c.readers.Wait()
	return err
}

func (c *Client) leave() error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	c.ended = true
	if c.again != nil {
		c.again.Stop()
	}
	c.mu.Lock()
	if c.idle != nil {
		c.idle.Stop()
	}
	c.mu.Unlock()
	err := c.endIdle()
	if c.link != nil {
		c.link.leave()
		err = errors.Join(err, unix.Close(c.link.process.file))
		c.link = nil
	}
	c.forgetHeld()
	return err
}

// with calls a function with a link, and with the turn; not if there is no keeper and
// none is to be started. If the link fails the keeper is ended.
func (c *Client) with(start bool, f func(*link) error) error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if err := c.connect(start); err != nil || c.link == nil {
		return err
	}
	err := f(c.link)
	if errors.Is(err, errGone) {
		c.drop(err)
	}
	c.watchIdle()
	return err
}

// connect has the link be of a keeper that lives, if there is one or one is to be
// started.
func (c *Client) connect(start bool) error {
	if c.ended {
		if start {
			return errClosed
		}
		return nil
	}
	if c.link != nil {
		select {
		case <-c.link.gone:
			c.drop(errGone)
		default:
			return nil
		}
	}
	conn, p, err := c.find()
	if err != nil {
		return err
	}
	if conn != nil {
		err := c.greet(wire{conn}, p)
		if err == nil {
			return nil
		}
		c.log.Warn("network: what has carried encrypted networks and answered names is ended: another takes its place", "pid", p.pid, "error", err)
	}
	if !start {
		return nil
	}
	if wait := time.Until(c.resume); wait > 0 {
		return fmt.Errorf("the keeper has ended again and again: it is started again in %v", wait.Round(time.Millisecond))
	}
	c.begun = time.Now()
	if conn, p, err = c.spawn(); err == nil {
		err = c.greet(wire{conn}, p)
	}
	if err != nil {
		c.backOff()
		return err
	}
	c.log.Debug("network: a keeper has begun", "pid", p.pid)
	return nil
}

// greet takes a keeper over, and tells it what it is to know.
func (c *Client) greet(w wire, p *process) error {
	l, all, err := c.newLink(w, p)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.at = all.At
	for _, t := range all.Taps {
		c.taps[t.Overlay] = t
	}
	for _, r := range all.Resolvers {
		c.resolvers[r.Sandbox] = r
	}
	c.mu.Unlock()
	if err := errors.Join(c.tellZones(l), c.tellCrypt(l)); err != nil {
		c.forgetHeld()
		return errors.Join(err, l.kill())
	}
	c.link = l
	c.readers.Go(func() { c.attend(l) })
	return nil
}

// attend says when a keeper has ended that was not told to.
func (c *Client) attend(l *link) {
	select {
	case <-l.ended:
		return
	case <-l.gone:
	}
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.link == l {
		c.drop(errGone)
	}
}

// drop gives up a keeper that is gone or of no use.
func (c *Client) drop(why error) {
	l := c.link
	c.link = nil
	c.forgetHeld()
	c.mu.Lock()
	c.lost++
	c.mu.Unlock()
	err := l.kill()
	c.backOff()
	c.log.Error("network: what carries encrypted networks and answers names has ended, and is started again", "pid", l.process.pid, "error", errors.Join(why, err), "said", c.lastSaid())
	c.cfg.Lost()
}

// backOff has the next keeper wait if this one did not live long.
func (c *Client) backOff() {
	if time.Since(c.begun) > healthy {
		c.pause = 0
		return
	}
	c.resume = time.Now().Add(c.pause)
	c.wake(c.pause)
	c.pause = min(max(2*c.pause, firstPause), maxPause)
}

// wake has Lost be called when a keeper may be started again.
func (c *Client) wake(after time.Duration) {
	if c.again != nil {
		c.again.Stop()
	}
	c.again = time.AfterFunc(after, c.cfg.Lost)
}

func (c *Client) forgetHeld() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = netip.AddrPort{}
	clear(c.taps)
	clear(c.resolvers)
}

// holdsNothing reports whether the keeper has nothing to do.
func (c *Client) holdsNothing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.at.IsValid() && len(c.resolvers) == 0
}

// watchIdle has a keeper end that goes on holding nothing.
func (c *Client) watchIdle() {
	idle := c.link != nil && c.holdsNothing()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !idle && c.idle != nil:
		c.idle.Stop()
		c.idle = nil
	case idle && c.idle == nil:
		c.idle = time.AfterFunc(rest, func() {
			c.turn <- struct{}{}
			defer func() { <-c.turn }()
			if err := c.endIdle(); err != nil {
				c.log.Warn("network: a keeper that has nothing to do does not end", "error", err)
			}
		})
	}
}

// endIdle ends a keeper that holds nothing. Callers have the turn.
func (c *Client) endIdle() error {
	if c.link == nil || !c.holdsNothing() {
		return nil
	}
	l := c.link
	c.link = nil
	defer func() { _ = os.Remove(c.said()) }()
	r, err := l.call(request{Status: true, End: true})
	c.note(r)
	l.leave()
	if err == nil {
		err = l.process.await(patience)
	}
	return errors.Join(err, l.process.end())
}

// note keeps what a keeper says of what it has carried.
func (c *Client) note(r reply) {
	if r.Status != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.status = *r.Status
	}
}

// Status returns what the keeper has carried since it began, or what the last one
// had when it ended. lost is how many keepers ended without being told to.
func (c *Client) Status() (s Status, lost uint64) {
	err := c.with(false, func(l *link) error {
		r, err := l.call(request{Status: true})
		c.note(r)
		return err
	})
	if err != nil {
		c.log.Debug("network: the keeper does not say what it has carried", "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status, c.lost
}
