package node

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/manager/dispatcher"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
)

// member is this node as a member of a swarm, while it runs: its agent, and on
// a manager the store on its log, the loops and the services for other nodes.
type member struct {
	dir   string // <data-root>/swarm
	state *membership
	creds *rpc.Credentials
	exec  exec.Executor
	log   *slog.Logger

	// On a manager.
	store   *store.Store
	raft    *raftnode.Node
	control *control.Control
	disp    *dispatcher.Dispatcher
	issuer  *issuer.Issuer
	manager *manager.Manager
	listen  net.Listener
	genesis *genesis      // of a swarm that begins here
	founded chan struct{} // closed when this manager knows the swarm
	once    sync.Once

	// node is what the managers last said of this node.
	node atomic.Pointer[api.Node]
}

// openMember reads what is on disk and takes the port; nothing runs yet. close
// gives it back, unless run was called, which does so itself.
func openMember(dir string, state *membership, g *genesis, ex exec.Executor, log *slog.Logger) (_ *member, err error) {
	keys, err := keyFiles(dir).Load(nil, time.Now())
	if err != nil {
		return nil, fmt.Errorf("this node's certificate: %w", err)
	}
	m := &member{dir: dir, state: state, creds: &rpc.Credentials{}, exec: ex, genesis: g, founded: make(chan struct{}),
		log: log.With("node", state.NodeID)}
	if err := m.creds.Set(keys); err != nil {
		return nil, err
	}
	if m.store, err = store.New(store.Config{}); err != nil {
		return nil, err
	}
	if m.listen, err = net.Listen("tcp", state.ListenAddr); err != nil {
		return nil, api.Errorf(api.Unavailable, "the swarm's port can't be opened: %w: is another swarm node on this host? Choose another one with --listen-addr", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.listen.Close())
		}
	}()
	m.raft, err = raftnode.Open(m.raftConfig())
	if err != nil {
		return nil, err
	}
	if g != nil {
		if err := m.raft.Bootstrap(state.AdvertiseAddr); err != nil {
			return nil, err
		}
	}
	return m, m.assemble()
}

func (m *member) raftConfig() raftnode.Config {
	return raftnode.Config{
		ID: raftID(m.state.NodeID), Dir: filepath.Join(m.dir, raftDir), Applier: m.store,
		Tick: raftTick, Log: m.log.With("component", "raft"),
	}
}

// raftTick is Docker's: --raft-heartbeat-tick and election ticks count in it.
const raftTick = time.Second / 10

// raftID makes a number of a node's id.
func raftID(nodeID string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(nodeID)) // never fails
	return max(h.Sum64(), 1)
}

func (m *member) assemble() (err error) {
	if m.disp, err = dispatcher.New(dispatcher.Config{Store: m.store, Peer: peer, Log: m.log.With("component", "dispatcher")}); err != nil {
		return err
	}
	if m.issuer, err = issuer.New(issuer.Config{Store: m.store, Peer: peer, Log: m.log.With("component", "issuer")}); err != nil {
		return err
	}
	m.control = control.New(control.Config{Store: m.store, NewToken: m.newToken, Manager: m.managerStatus})
	m.manager = manager.New(manager.Config{
		Store: m.store, Leadership: m.raft, Log: m.log.With("component", "manager"),
		Loops: []manager.Loop{{Name: "dispatcher", Run: m.disp.Lead}, {Name: "issuer", Run: m.issuer.Run}, {Name: "genesis", Run: m.found}},
	})
	return nil
}

// found writes the swarm's first objects when this node first leads.
func (m *member) found(ctx context.Context) error {
	if m.genesis != nil {
		if err := m.genesis.found(ctx, m.store); err != nil {
			return err
		}
	}
	m.once.Do(func() { close(m.founded) })
	<-ctx.Done()
	return nil
}

// managerStatus is what raft knows of a manager.
func (m *member) managerStatus(n *api.Node) *swarm.ManagerStatus {
	id := raftID(n.ID)
	st := m.raft.Status()
	s := &swarm.ManagerStatus{Leader: st.Leader == id, Reachability: swarm.ReachabilityUnreachable, Addr: n.ManagerAddr}
	if id == st.ID || st.Leader == id {
		s.Reachability = swarm.ReachabilityReachable
	}
	return s
}

func (m *member) newToken(c *api.Cluster) (string, error) {
	root, err := ca.ParseRoot(c.RootCA.Cert, c.RootCA.Key)
	if err != nil {
		return "", err
	}
	return ca.NewToken(root), nil
}

func peer(ctx context.Context) (ca.Identity, string, bool) {
	p, ok := rpc.PeerFrom(ctx)
	return p.Identity, p.Addr, ok
}

// run is the member's life: until ctx ends (nil), or something that it can't
// do without fails.
func (m *member) run(ctx context.Context) error {
	server := rpc.NewServer(rpc.ServerConfig{Credentials: m.creds, Removed: m.removed, Log: m.log.With("component", "rpc")})
	m.disp.Register(server)
	m.issuer.Register(server)
	a, err := agent.New(agent.Config{
		Executor: m.exec, Dial: m.dial, Dir: filepath.Join(m.dir, workerDir), Log: m.log.With("component", "agent"),
		Notify: m.notice, TLSInfo: func() swarm.TLSInfo { return tlsInfo(m.creds.Keys().Root) },
	})
	if err != nil {
		return errors.Join(err, m.listen.Close())
	}
	m.store.SetProposer(m.raft)
	log, ctx := errgroup.WithContext(ctx)
	// The log ends last, so that what is under way can still be written.
	logCtx, endLog := context.WithCancel(context.WithoutCancel(ctx))
	log.Go(func() error { return named("raft", m.raft.Run(logCtx)) })
	log.Go(func() error {
		defer endLog()
		rest, ctx := errgroup.WithContext(ctx)
		for name, run := range map[string]func(context.Context) error{
			"agent": m.whenFounded(a.Run), "dispatcher": m.disp.Run, "manager": m.manager.Run, "certificate": m.renew,
			"rpc": func(context.Context) error { return server.Serve(m.listen) },
		} {
			rest.Go(func() error { return named(name, run(ctx)) })
		}
		rest.Go(func() error {
			<-ctx.Done()
			server.Stop()
			return nil
		})
		return rest.Wait()
	})
	return log.Wait()
}

// whenFounded runs the agent once this manager knows the swarm: earlier it
// would tell the node that it is no member.
func (m *member) whenFounded(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-m.founded:
			return run(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// named says which part failed. A part that ends with its context has not.
func named(name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

func (m *member) removed(id string) bool {
	for c := range store.List[*api.Cluster](m.store.View()) {
		until, ok := c.Removed[id]
		return ok && time.Now().Before(until)
	}
	return false
}

// dial connects to this node's own manager.
func (m *member) dial(context.Context) (*grpc.ClientConn, error) {
	return rpc.DialManager(localAddr(m.listen.Addr()), m.creds)
}

// localAddr is how a listener is reached from this host.
func localAddr(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return a.String()
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(t.Port))
}

func (m *member) notice(n agent.Notice) {
	if n.Node != nil {
		m.node.Store(n.Node)
	}
}

// renew keeps the node's certificate fresh.
func (m *member) renew(ctx context.Context) error {
	r := renewal{creds: m.creds, files: keyFiles(m.dir), dial: m.dial, log: m.log}
	return r.run(ctx)
}

// forget removes all that membership left on disk.
func forget(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the swarm's data: %w", err)
	}
	return nil
}
