package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode/disktest"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// host is a machine: it has a disk and containers, which outlive its daemon. The
// daemon is an agent and, on a manager, a manager part.
type host struct {
	c        *cluster
	id, addr string // id is what it is called; the managers know it as node()
	fake     *exectest.Fake
	dark     bool         // without power; guarded by network.mu
	clock    atomic.Int64 // by how much the wall clock is wrong
	// trap is called, once, as a loop of the leader's here is about to write.
	trap atomic.Pointer[func()]

	mu      sync.Mutex
	nodeID  string
	removed bool   // perhaps: a user has said so
	dir     string // of the agent
	manages bool   // its certificate is a manager's
	raftID  uint64 // 0: it has no log
	peers   []swarm.Peer
	up      bool
	dead    bool // the daemon is being killed
	disk    *disktest.Disk
	manager *manager
	role    chan struct{} // closed and replaced when manages changes
	ends    func(kill bool)
}

func newHost(c *cluster, number int) *host {
	h := &host{
		c: c, id: fmt.Sprintf("node%d", number), addr: fmt.Sprintf("n%d:2377", number), dir: c.t.TempDir(), disk: disktest.New(), role: make(chan struct{}),
	}
	h.nodeID, h.fake = h.id, exectest.NewFake(h.behave)
	return h
}

// node is the id that the host has in the swarm: a new one when it joins again.
func (h *host) node() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nodeID
}

// certified reports whether the host's certificate is a manager's.
func (h *host) certified() (bool, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.manages, h.role
}

func (h *host) managing() *manager {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead {
		return nil
	}
	return h.manager
}

func (h *host) killed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dead
}

func (h *host) running() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up
}

// start begins the daemon.
func (h *host) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	h.mu.Lock()
	h.up, h.dead = true, false
	h.mu.Unlock()
	go func() {
		defer close(done)
		h.manage(ctx)
	}()
	endAgent := h.startAgent()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends = func(kill bool) {
		endAgent(kill)
		cancel()
		<-done
	}
}

// manage runs the manager part while the host's certificate is a manager's, as
// package node does.
func (h *host) manage(ctx context.Context) {
	for ctx.Err() == nil {
		is, changed := h.certified()
		if !is {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		err := h.runManager(ctx, changed)
		switch {
		case errors.Is(err, errNoManager):
			h.c.events.add(h.id + " is not a manager any more")
			h.mu.Lock()
			h.raftID, h.disk = 0, disktest.New()
			h.mu.Unlock()
			select { // what the managers say now decides how it goes on
			case <-changed:
			case <-time.After(2 * time.Second):
			case <-ctx.Done():
			}
		case err != nil:
			if !errors.Is(err, disktest.ErrCrashed) {
				h.c.failf("%s: its manager ended: %v", h.id, err)
			}
			return
		}
	}
}

// runManager runs the manager part until ctx ends (nil), it can't go on, or the
// host is no manager any more (errNoManager).
func (h *host) runManager(ctx context.Context, changed <-chan struct{}) error {
	h.mu.Lock()
	if h.raftID == 0 {
		h.raftID = h.c.newRaftID()
	}
	id := h.raftID
	h.mu.Unlock()
	m, err := h.openManager(id, id == firstRaftID)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	h.mu.Lock()
	h.manager = m
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.manager = nil
		h.mu.Unlock()
	}()
	done := make(chan error, 1)
	go func() { done <- m.run(run) }()
	select {
	case <-changed: // it has a worker's certificate now
		stop()
		if err := <-done; err != nil {
			return err
		}
		return errNoManager
	case err := <-done:
		return err
	}
}

// noticed takes what a manager says of this node: it gets the certificate of its
// role at once.
func (h *host) noticed(n agent.Notice) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(n.Managers) > 0 {
		h.peers = n.Managers
	}
	if is := n.Node != nil && n.Node.Role == swarm.NodeRoleManager; n.Node != nil && is != h.manages {
		h.manages = is
		close(h.role)
		h.role = make(chan struct{})
	}
}

// startAgent begins the agent; what it returns ends it.
func (h *host) startAgent() func(kill bool) {
	h.mu.Lock()
	known, dir := agent.NewManagers(h.peers), h.dir
	h.mu.Unlock()
	a, err := agent.New(agent.Config{
		Executor: machine{h.fake}, Now: h.now, Dir: dir, Log: h.c.events.logger(h.id).With("component", "agent"), Managers: known, Notify: h.noticed,
		Dial: func(context.Context) (*grpc.ClientConn, string, error) {
			prefer := ""
			if h.managing() != nil {
				prefer = h.addr
			}
			addr := known.Pick(prefer, "")
			cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveIdle, Timeout: keepaliveTimeout}),
				grpc.WithContextDialer(h.dial), grpc.WithUnaryInterceptor(h.unary), grpc.WithStreamInterceptor(h.stream))
			return cc, addr, err
		},
	})
	if err != nil {
		h.c.failf("%s: agent: %v", h.id, err)
		return func(bool) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.Run(ctx); err != nil && !(api.Is(err, api.NotFound) && h.mayBeRemoved()) {
			h.c.failf("%s: agent: %v", h.id, err)
		}
	}()
	return func(kill bool) {
		if kill {
			h.c.net.reset(h.addr)
		}
		cancel()
		<-done
	}
}

func (h *host) dial(ctx context.Context, addr string) (net.Conn, error) {
	if err := h.c.net.pass(ctx.Done(), h.addr, addr); err != nil {
		return nil, err
	}
	m := h.c.net.manager(addr)
	if m == nil || h.killed() {
		return nil, errors.New("connection refused")
	}
	return h.c.net.dial(ctx, h, addr, m.listen)
}

func (h *host) unary(ctx context.Context, m string, req, resp any, cc *grpc.ClientConn, next grpc.UnaryInvoker, o ...grpc.CallOption) error {
	return next(metadata.AppendToOutgoingContext(ctx, "node", h.node()), m, req, resp, cc, o...)
}

func (h *host) stream(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := next(metadata.AppendToOutgoingContext(ctx, "node", h.node()), d, cc, m, o...)
	if err != nil {
		return nil, err
	}
	return &overheard{ClientStream: s, host: h}, nil
}

// overheard is a stream whose messages are checked.
type overheard struct {
	grpc.ClientStream
	host    *host
	session string // of assignments
}

// SendMsg passes a request.
func (s *overheard) SendMsg(m any) error {
	if r, ok := m.(*swarmpb.AssignmentsRequest); ok {
		s.session = r.GetSessionId()
	}
	return s.ClientStream.SendMsg(m)
}

// RecvMsg passes what a manager says.
func (s *overheard) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	switch m := m.(type) {
	case *swarmpb.SessionMessage:
		s.host.c.checks.opened(s.host.node(), m.GetSessionId())
	case *swarmpb.AssignmentsMessage:
		s.host.c.checks.told(s.host.node(), s.session, m, s.host.written(s.session))
	}
	return nil
}

// written reports whether some manager has it that this session is the host's.
func (h *host) written(session string) bool {
	for _, o := range h.c.hosts {
		if m := o.managing(); m != nil {
			if n := store.Get[*api.Node](m.store.View(), h.node()); n != nil && n.Session.ID == session {
				return true
			}
		}
	}
	return false
}

// end ends the daemon: as on SIGTERM, or by kill -9.
func (h *host) end(kill bool) {
	h.mu.Lock()
	if !h.up {
		h.mu.Unlock()
		return
	}
	h.up, h.dead = false, kill
	m, ends := h.manager, h.ends
	if kill {
		h.disk = h.disk.Killed()
	}
	h.mu.Unlock()
	h.c.wake(h)
	if m != nil && kill {
		m.server.Stop() // its connections break
		h.c.suspect(h, m.id)
	}
	ends(kill)
}

// powerOff ends all that runs on the host, and what its disk had not got yet is
// lost. The others hear nothing.
func (h *host) powerOff() {
	h.c.net.change(func() {
		h.dark = true
		h.c.net.isolate(h.addr)
	})
	h.mu.Lock()
	h.dead, h.disk = true, h.disk.Crash(h.c.rng)
	h.mu.Unlock()
	h.end(true)
	h.fake.Lose()
}

// powerOn is what follows powerOff.
func (h *host) powerOn() {
	h.c.net.change(func() {
		h.dark = false
		h.c.net.rejoin(h.addr)
	})
	h.c.net.reset(h.addr)
	h.start()
}

// suspect has the other managers see that a process has ended.
func (c *cluster) suspect(dead *host, id uint64) {
	for _, h := range c.hosts {
		m := h.managing()
		if m == nil || h == dead {
			continue
		}
		c.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			defer cancel()
			if (transport{net: c.net, from: dead.addr}).walk(ctx, dead.addr, h.addr) == nil {
				_ = m.raft.Suspect(ctx, id)
			}
		})
	}
}
