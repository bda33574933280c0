package sim

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/raftnode/disktest"
)

const firstRaftID = 1

// host is a machine: it has a disk and containers, which outlive its daemon. The
// daemon is an agent and, on a manager, a manager part.
type host struct {
	c        *cluster
	id, addr string
	dir      string // of the agent
	fake     *exectest.Fake
	manages  bool
	raftID   uint64
	dark     bool // without power; guarded by network.mu

	mu      sync.Mutex
	up      bool
	dead    bool // the daemon is being killed
	disk    *disktest.Disk
	manager *manager
	endAll  func(kill bool)
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
	h.mu.Lock()
	h.up, h.dead = true, false
	h.mu.Unlock()
	if h.manages {
		h.startManager()
	}
	ended := h.startAgent()
	h.mu.Lock()
	h.endAll = ended
	h.mu.Unlock()
}

func (h *host) startManager() {
	m, err := h.openManager(h.raftID, h.raftID == firstRaftID)
	if err != nil {
		h.c.failf("%s: its manager can't be opened: %v", h.id, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	h.mu.Lock()
	h.manager = m
	h.mu.Unlock()
	go func() {
		defer close(m.done)
		m.err = m.run(ctx)
		if m.err != nil && !errors.Is(m.err, disktest.ErrCrashed) {
			h.c.failf("%s: its manager ended: %v", h.id, m.err)
		}
	}()
}

// startAgent begins the agent; what it returns ends it.
func (h *host) startAgent() func(kill bool) {
	known := agent.NewManagers(h.c.peers())
	prefer := ""
	if h.manages {
		prefer = h.addr
	}
	a, err := agent.New(agent.Config{
		Executor: h.fake, Dir: h.dir, Log: h.c.events.logger(h.id).With("component", "agent"), Managers: known,
		Dial: func(context.Context) (*grpc.ClientConn, string, error) {
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
		if err := a.Run(ctx); err != nil {
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
	return next(metadata.AppendToOutgoingContext(ctx, "node", h.id), m, req, resp, cc, o...)
}

func (h *host) stream(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := next(metadata.AppendToOutgoingContext(ctx, "node", h.id), d, cc, m, o...)
	return s, err
}

// end ends the daemon: as on SIGTERM, or by kill -9.
func (h *host) end(kill bool) {
	h.mu.Lock()
	if !h.up {
		h.mu.Unlock()
		return
	}
	h.up, h.dead = false, kill
	m, endAgent := h.manager, h.endAll
	if kill {
		h.disk = h.disk.Killed()
	}
	h.mu.Unlock()
	if m != nil && kill {
		m.server.Stop() // its connections break
		h.c.suspect(h)
	}
	endAgent(kill)
	if m != nil {
		m.stop()
		<-m.done
	}
	h.mu.Lock()
	h.manager = nil
	h.mu.Unlock()
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
		for w := range h.c.net.cut {
			if w.from == h.addr || w.to == h.addr {
				delete(h.c.net.cut, w)
			}
		}
	})
	h.c.net.reset(h.addr)
	h.start()
}

// peers are the managers that all know.
func (c *cluster) peers() (list []swarm.Peer) {
	for _, h := range c.hosts {
		if h.manages {
			list = append(list, swarm.Peer{NodeID: h.id, Addr: h.addr})
		}
	}
	return list
}

// suspect has the other managers see that a process has ended.
func (c *cluster) suspect(dead *host) {
	id := dead.raftID
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
