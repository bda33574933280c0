package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/dispatcher"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/manager/presence"
	"github.com/legion-swarm/legion/store"
)

// world is a swarm in a synctest bubble: several managers over one store that
// never lags, and agents that reach them over pipes which can be cut. Time is
// the bubble's.
type world struct {
	t        *testing.T
	store    *store.Store
	managers []*lead
	noLead   chan struct{} // closed and replaced when led changes
	led      atomic.Bool
	mu       sync.Mutex
	history  map[string][]swarm.NodeState
}

func newWorld(t *testing.T, managers int, period time.Duration) *world {
	t.Helper()
	s, err := store.NewLocal(store.Config{})
	check(t, err)
	w := &world{t: t, store: s, noLead: make(chan struct{}), history: map[string][]swarm.NodeState{}}
	w.led.Store(true)
	c := &api.Cluster{}
	c.ID = api.NewID()
	c.Spec.Name, c.Spec.Dispatcher.HeartbeatPeriod = "default", period
	w.update(func(tx *store.Tx) error { return store.Create(tx, c) })
	for i := range managers {
		l := &lead{w: w, id: fmt.Sprintf("manager%d", i), addr: fmt.Sprintf("m%d:2377", i)}
		n := issuer.NewNode(l.id, swarm.NodeRoleManager, "", nil)
		n.Certificate.State, n.ManagerAddr = api.CertificateIssued, l.addr
		w.update(func(tx *store.Tx) error { return store.Create(tx, n) })
		w.managers = append(w.managers, l)
		l.start()
	}
	w.spawn(w.record)
	w.spawn((&presence.Loop{
		Store: s, Log: logger(t), Probe: w.probe,
		Reachable: func(n *api.Node) bool { return w.at(n.ManagerAddr).alive() },
		Grace:     func(c *api.Cluster) time.Duration { return dispatcher.Grace(c.Spec.Dispatcher.HeartbeatPeriod) },
	}).Run)
	return w
}

// spawn runs something until the test ends.
func (w *world) spawn(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			w.t.Error(err)
		}
	}()
	w.t.Cleanup(func() { cancel(); <-done })
}

// record keeps which states each node went through.
func (w *world) record(ctx context.Context) error {
	view, watcher := w.store.Watch(store.KindNode)
	defer watcher.Close()
	note := func(n *api.Node) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if h := w.history[n.ID]; len(h) == 0 || h[len(h)-1] != n.Status.State {
			w.history[n.ID] = append(h, n.Status.State)
		}
	}
	for n := range store.List[*api.Node](view) {
		note(n)
	}
	for {
		changes, err := watcher.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes {
			if n, _ := c.New.(*api.Node); n != nil {
				note(n)
			}
		}
	}
}

func (w *world) update(fn func(tx *store.Tx) error) {
	w.t.Helper()
	_, err := w.store.Update(context.Background(), fn)
	check(w.t, err)
}

func (w *world) node(id string) *api.Node { return store.Get[*api.Node](w.store.View(), id) }

func (w *world) task(id string) *api.Task { return store.Get[*api.Task](w.store.View(), id) }

func (w *world) at(addr string) *lead {
	for _, l := range w.managers {
		if l.addr == addr {
			return l
		}
	}
	return nil
}

func (w *world) probe(ctx context.Context, addr string) (bool, error) {
	l := w.at(addr)
	l.mu.Lock()
	up, silent := l.server != nil, l.silent
	l.mu.Unlock()
	if silent {
		<-ctx.Done()
		return false, ctx.Err()
	}
	return up, nil
}

func (w *world) setLed(led bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.led.Store(led)
	close(w.noLead)
	w.noLead = make(chan struct{})
}

// untilNode waits for a node's state, and returns how long it took.
func (w *world) untilNode(id string, s swarm.NodeState) time.Duration {
	w.t.Helper()
	began := time.Now()
	for w.node(id).Status.State != s {
		if time.Since(began) > 48*time.Hour {
			w.t.Fatalf("node %s is never %s but %+v", id, s, w.node(id).Status)
		}
		time.Sleep(5 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(began)
}

// wait lets time pass.
func (w *world) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// stayed fails unless the node has been READY all the time since it first was.
func (w *world) stayed(id string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.history[id]
	if len(h) == 0 || h[len(h)-1] != swarm.NodeStateReady || len(h) > 2 {
		w.t.Errorf("node %s went through %v", id, h)
	}
}

// lead is a manager.
type lead struct {
	w        *world
	id, addr string

	mu     sync.Mutex
	server *grpc.Server // nil: the process is dead
	listen *bufconn.Listener
	silent bool // its host does not answer
	net    gate
	stop   func()
}

func (l *lead) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.server != nil && !l.silent
}

func (l *lead) start() {
	l.w.t.Helper()
	d, err := dispatcher.New(dispatcher.Config{
		Store: l.w.store, Node: l.id, Log: logger(l.w.t), Probe: l.w.probe,
		Peer: func(ctx context.Context) (ca.Identity, string, bool) {
			md, _ := metadata.FromIncomingContext(ctx)
			return ca.Identity{NodeID: md.Get("node")[0], Role: swarm.NodeRoleWorker}, "10.0.0.9:999", true
		},
		Led: func() (bool, <-chan struct{}) {
			l.w.mu.Lock()
			defer l.w.mu.Unlock()
			return l.w.led.Load() || l != l.w.managers[0], l.w.noLead
		},
	})
	check(l.w.t, err)
	server, listen := grpc.NewServer(), bufconn.Listen(1<<20)
	d.Register(server)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listen) })
	wg.Go(func() { _ = d.Run(ctx) })
	stop := sync.OnceFunc(func() { server.Stop(); cancel(); wg.Wait() })
	l.mu.Lock()
	l.server, l.listen, l.stop = server, listen, stop
	l.mu.Unlock()
	l.w.t.Cleanup(stop)
}

// hush cuts a manager off without a word.
func (l *lead) hush() {
	l.mu.Lock()
	l.silent = true
	l.mu.Unlock()
	l.net.set(silent)
}

// kill ends the process.
func (l *lead) kill() {
	l.mu.Lock()
	stop := l.stop
	l.server = nil
	l.mu.Unlock()
	stop()
}

// box is a node: its containers outlive its agents.
type box struct {
	w    *world
	id   string
	fake *exectest.Fake
	dir  string
	net  gate
	// prefer is the address of the manager that the node is.
	prefer string
	stop   func(cause error)
}

func (w *world) worker(id string) *box {
	w.t.Helper()
	n := issuer.NewNode(id, swarm.NodeRoleWorker, "", nil)
	n.Certificate.State = api.CertificateIssued
	w.update(func(tx *store.Tx) error { return store.Create(tx, n) })
	b := w.box(id, "")
	t := &api.Task{
		ID: "task-" + id, ServiceID: "service", NodeID: id, Slot: 1, SpecVersion: 1,
		Spec:   &api.TaskSpec{TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "image"}}, ServiceName: "web"},
		Status: swarm.TaskStatus{State: swarm.TaskStateAssigned}, DesiredState: swarm.TaskStateRunning,
	}
	w.update(func(tx *store.Tx) error { return store.Create(tx, t) })
	w.wait(time.Second)
	if s := w.task(t.ID).Status.State; s != swarm.TaskStateRunning {
		w.t.Fatalf("the task of %s is %s", id, s)
	}
	return b
}

// box starts the daemon of a node that the swarm has.
func (w *world) box(id, prefer string) *box {
	w.t.Helper()
	b := &box{w: w, id: id, prefer: prefer, fake: exectest.NewFake(nil), dir: w.t.TempDir()}
	b.start()
	w.untilNode(id, swarm.NodeStateReady)
	return b
}

// start begins the node's daemon.
func (b *box) start() {
	b.w.t.Helper()
	b.net.set(passes)
	var peers []swarm.Peer
	for _, l := range b.w.managers {
		peers = append(peers, swarm.Peer{NodeID: l.id, Addr: l.addr})
	}
	known := agent.NewManagers(peers)
	a, err := agent.New(agent.Config{
		Executor: b.fake, Dir: b.dir, Log: logger(b.w.t), Managers: known,
		Dial: func(context.Context) (*grpc.ClientConn, string, error) {
			addr := known.Pick(b.prefer, "")
			conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(b.dial),
				grpc.WithUnaryInterceptor(func(ctx context.Context, m string, req, resp any, cc *grpc.ClientConn, next grpc.UnaryInvoker, o ...grpc.CallOption) error {
					return next(metadata.AppendToOutgoingContext(ctx, "node", b.id), m, req, resp, cc, o...)
				}),
				grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
					return next(metadata.AppendToOutgoingContext(ctx, "node", b.id), d, cc, m, o...)
				}))
			return conn, addr, err
		},
	})
	check(b.w.t, err)
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Run(ctx) }()
	b.stop = func(cause error) { cancel(cause); <-done }
	b.w.t.Cleanup(func() { b.net.set(refused); b.stop(nil) })
}

// kill ends the daemon as kill -9 does: its connections end, nothing is said.
func (b *box) kill() {
	b.net.set(refused)
	b.stop(nil)
}

func (b *box) dial(ctx context.Context, addr string) (net.Conn, error) {
	l := b.w.at(addr)
	l.mu.Lock()
	listen, up := l.listen, l.server != nil
	l.mu.Unlock()
	if !up {
		return nil, errors.New("connection refused")
	}
	return b.net.dial(ctx, func(ctx context.Context) (net.Conn, error) { return l.net.dial(ctx, listen.DialContext) })
}
