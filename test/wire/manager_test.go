package wire

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/dispatcher"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/manager/presence"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
)

// manager is a whole manager as far as nodes see it.
type manager struct {
	store   *store.Store
	root    *ca.Root
	cluster *api.Cluster
	addr    string
	disp    *dispatcher.Dispatcher
	creds   *rpc.Credentials
	removed sync.Map
}

func peer(ctx context.Context) (ca.Identity, string, bool) {
	p, ok := rpc.PeerFrom(ctx)
	return p.Identity, p.Addr, ok
}

type options struct {
	heartbeat time.Duration
	addr      string       // to come back at the same address
	store     *store.Store // to come back with the same data
	root      *ca.Root
}

func logger(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newManager starts a manager; stop ends it and returns when it has.
func newManager(t testing.TB, o options) (m *manager, stop func()) {
	t.Helper()
	var err error
	m = &manager{store: o.store, root: o.root, creds: &rpc.Credentials{}}
	if m.root == nil {
		m.root, err = ca.NewRoot(time.Now())
		check(t, err)
	}
	if m.store == nil {
		m.store, err = store.NewLocal(store.Config{})
		check(t, err)
		key, err := m.root.KeyPEM()
		check(t, err)
		m.cluster = &api.Cluster{
			RootCA:     api.RootCA{Cert: m.root.CertPEM(), Key: key, Digest: m.root.Digest()},
			JoinTokens: swarm.JoinTokens{Worker: ca.NewToken(m.root), Manager: ca.NewToken(m.root)},
		}
		m.cluster.ID = api.NewID()
		m.cluster.Spec.Name = "default"
		m.cluster.Spec.Dispatcher.HeartbeatPeriod = o.heartbeat
		m.update(t, func(tx *store.Tx) error { return store.Create(tx, m.cluster) })
	} else {
		for c := range store.List[*api.Cluster](m.store.View()) {
			m.cluster = c
		}
	}
	self := api.NewID()
	own := issuer.NewNode(self, swarm.NodeRoleManager, "", nil)
	own.Certificate.State, own.Session.Manager = api.CertificateIssued, self
	own.Status.State = swarm.NodeStateReady
	m.update(t, func(tx *store.Tx) error { return store.Create(tx, own) })
	check(t, m.creds.Set(m.keys(t, self, swarm.NodeRoleManager)))
	m.disp, err = dispatcher.New(dispatcher.Config{Store: m.store, Node: self, Peer: peer, Log: logger(t)})
	check(t, err)
	iss, err := issuer.New(issuer.Config{Store: m.store, Peer: peer, Log: logger(t)})
	check(t, err)
	server := rpc.NewServer(rpc.ServerConfig{
		Credentials: m.creds, Log: logger(t),
		Removed: func(id string) bool { _, ok := m.removed.Load(id); return ok },
	})
	m.disp.Register(server)
	iss.Register(server)
	watch := &presence.Loop{
		Store: m.store, Log: logger(t), Reachable: func(n *api.Node) bool { return n.ID == self },
		Grace: func(c *api.Cluster) time.Duration { return dispatcher.Grace(c.Spec.Dispatcher.HeartbeatPeriod) },
	}
	if o.addr == "" {
		o.addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", o.addr)
	check(t, err)
	m.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	for _, run := range []func(context.Context) error{m.disp.Run, watch.Run, iss.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error("a loop of the manager failed:", err)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		server.Stop()
		wg.Wait()
	})
	t.Cleanup(stop)
	return m, stop
}

func (m *manager) update(t testing.TB, fn func(tx *store.Tx) error) {
	t.Helper()
	_, err := m.store.Update(context.Background(), fn)
	check(t, err)
}

// keys issues a certificate without asking anyone.
func (m *manager) keys(t testing.TB, id string, role swarm.NodeRole) *ca.Keys {
	t.Helper()
	key, csr, err := ca.NewRequest()
	check(t, err)
	cert, err := m.root.Issue(csr, ca.Identity{NodeID: id, Role: role, Cluster: m.cluster.ID}, 0, time.Now())
	check(t, err)
	keys, err := ca.NewKeys(m.root, cert, key, time.Now())
	check(t, err)
	return keys
}

// member makes a node of the swarm and returns its credentials.
func (m *manager) member(t testing.TB, id string) *rpc.Credentials {
	t.Helper()
	n := issuer.NewNode(id, swarm.NodeRoleWorker, "", nil)
	n.Certificate.State = api.CertificateIssued
	m.update(t, func(tx *store.Tx) error { return store.Create(tx, n) })
	c := &rpc.Credentials{}
	check(t, c.Set(m.keys(t, id, swarm.NodeRoleWorker)))
	return c
}

func (m *manager) dial(t testing.TB, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial(m.addr, config)
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (m *manager) client(t testing.TB, c *rpc.Credentials) *grpc.ClientConn {
	t.Helper()
	return m.dial(t, c.ClientConfig(ca.ManagerOU))
}

// worker is a node: its fake containers outlive its agents.
type worker struct {
	id    string
	fake  *exectest.Fake
	dir   string
	creds *rpc.Credentials
	addr  string
	ended chan error // what the last agent's Run returned
}

func (m *manager) worker(t testing.TB, script func(*api.Task) exectest.Script) *worker {
	t.Helper()
	id := api.NewID()
	return &worker{id: id, fake: exectest.NewFake(script), dir: t.TempDir(), creds: m.member(t, id), addr: m.addr}
}

// run starts the node's agent; stop ends it, and returns Run's error.
func (w *worker) run(t testing.TB) (stop func() error) {
	t.Helper()
	a, err := agent.New(agent.Config{
		Executor: w.fake, Dir: w.dir, Log: logger(t),
		Dial: func(context.Context) (*grpc.ClientConn, string, error) {
			conn, err := rpc.DialManager(w.addr, w.creds)
			return conn, w.addr, err
		},
	})
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	w.ended = make(chan error, 1)
	ended := w.ended
	go func() { err := a.Run(ctx); ended <- err; done <- err }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func (m *manager) task(id, node string) *api.Task {
	return &api.Task{
		ID: id, ServiceID: "service", NodeID: node, Slot: 1, SpecVersion: 1,
		Spec: &api.TaskSpec{
			TaskSpec:    swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "image"}},
			ServiceName: "web",
		},
		Status:       swarm.TaskStatus{State: swarm.TaskStateAssigned},
		DesiredState: swarm.TaskStateRunning,
	}
}

func (m *manager) create(t testing.TB, tasks ...*api.Task) {
	t.Helper()
	m.update(t, func(tx *store.Tx) error {
		for _, task := range tasks {
			if err := store.Create(tx, task); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *manager) desire(t testing.TB, id string, s swarm.TaskState) {
	t.Helper()
	m.update(t, func(tx *store.Tx) error {
		task := *store.Get[*api.Task](tx, id)
		task.DesiredState = s
		return store.Put(tx, &task)
	})
}

// until waits on the store until ok holds.
func (m *manager) until(t testing.TB, what string, ok func(*store.View) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	view, w := m.store.Watch()
	defer w.Close()
	for !ok(view) {
		if _, err := w.Next(ctx); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		view = m.store.View()
	}
}

func (m *manager) untilState(t testing.TB, id string, s swarm.TaskState) *api.Task {
	t.Helper()
	var task *api.Task
	m.until(t, "task "+id+" "+string(s), func(v *store.View) bool {
		task = store.Get[*api.Task](v, id)
		return task != nil && task.Status.State == s
	})
	return task
}

func (m *manager) untilNode(t testing.TB, id string, s swarm.NodeState) *api.Node {
	t.Helper()
	var n *api.Node
	m.until(t, "node "+id+" "+string(s), func(v *store.View) bool {
		n = store.Get[*api.Node](v, id)
		return n != nil && n.Status.State == s
	})
	return n
}

// eventually is for what no store shows: the state of a fake.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}
