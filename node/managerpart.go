package node

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/manager/dispatcher"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/manager/netkeys"
	"github.com/legion-swarm/legion/manager/presence"
	"github.com/legion-swarm/legion/manager/roles"
	"github.com/legion-swarm/legion/manager/rotator"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
)

// managerPart is what a manager has besides: the store on its log, the loops of
// the leader, and the services for other nodes.
type managerPart struct {
	dir      string // <data-root>/swarm
	state    *membership
	creds    *rpc.Credentials
	vault    *vault
	log      *slog.Logger
	recovery *recovery
	// peers are the managers that the node knows of, to join through them.
	peers func() []string
	// routes are the prefixes that this host routes; nil: not known.
	routes func(context.Context) ([]netip.Prefix, error)

	store    *store.Store
	raft     *raftnode.Node
	mesh     *rpc.Mesh
	control  *control.Control
	disp     *dispatcher.Dispatcher
	issuer   *issuer.Issuer
	keeper   *roles.Keeper
	manager  *manager.Manager
	listen   net.Listener
	server   *rpc.Server
	genesis  *genesis // of a swarm that begins here
	forced   bool     // this manager goes on without those that it had beside it
	stranger chan *grpc.ClientConn
	// informed is a manager that hears the leader while this one hears none; nil:
	// none is known. It means something only while nobody leads here.
	informed atomic.Pointer[raftnode.Member]
	founded  chan struct{} // closed when this manager knows the swarm
	refused  chan error    // why the leader can't take this manager in; one at most
	// refusal is the last error of joining the others' log; nil: there was none.
	refusal atomic.Pointer[error]
	once    sync.Once
	done    chan struct{} // closed when run has returned
}

// openManager opens the log and takes the port; nothing runs until run, which gives
// all back.
func (m *member) openManager(cfg *memberConfig) (_ *managerPart, err error) {
	if m.membership().RaftID == 0 {
		if err := m.remember(func(s *membership) { s.RaftID = newRaftID() }); err != nil {
			return nil, err
		}
	}
	p := &managerPart{
		dir: m.dir, state: m.membership(), creds: m.creds, vault: m.vault, log: m.log, genesis: cfg.genesis, forced: cfg.forced, peers: m.peers, recovery: m.worker.recovery,
		stranger: make(chan *grpc.ClientConn, 1), founded: make(chan struct{}), refused: make(chan error, 1), done: make(chan struct{}),
	}
	if n := m.worker.networks; n != nil {
		p.routes = n.Routes
	}
	if p.store, err = store.New(store.Config{}); err != nil {
		return nil, err
	}
	if p.listen, err = net.Listen("tcp", p.state.ListenAddr); err != nil {
		return nil, api.Errorf(api.Unavailable, "the swarm's port can't be opened: %w: is another swarm node on this host? Choose another one with --listen-addr", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.listen.Close())
		}
	}()
	p.mesh = rpc.NewMesh(rpc.MeshConfig{
		Credentials: p.creds, ID: p.state.RaftID, Addr: p.state.AdvertiseAddr, Unreachable: p.unreachable, Suspect: p.suspect, Stranger: p.isStranger,
		Log: p.log.With("component", "mesh"),
	})
	sealer, err := p.vault.sealer()
	if err != nil {
		return nil, err
	}
	if p.raft, err = raftnode.Open(p.raftConfig(sealer)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.raft.Close())
		}
	}()
	if p.genesis != nil {
		if err := p.raft.Bootstrap(p.state.AdvertiseAddr); err != nil {
			return nil, err
		}
	}
	return p, p.assemble()
}

func (p *managerPart) raftConfig(sealer raftnode.Sealer) raftnode.Config {
	return raftnode.Config{
		ID: p.state.RaftID, Dir: filepath.Join(p.dir, raftDir), Applier: p.store, Transport: transport{p.mesh}, Sealer: sealer,
		Tick: raftTick, ForceNewCluster: p.forced, Address: p.state.AdvertiseAddr, Log: p.log.With("component", "raft"),
	}
}

// raftTick is a tenth of Docker's: the election timeout is then from one to two
// seconds, which a busy machine or a slow disk does not exceed by chance. A
// manager whose process has died is noticed sooner: see rpc.Mesh.
const raftTick = time.Second / 10

// newRaftID makes a number that no manager has had before.
func newRaftID() uint64 { return max(rand.Uint64(), 1) }

func (p *managerPart) assemble() (err error) {
	if p.disp, err = dispatcher.New(dispatcher.Config{
		Store: p.store, Node: p.state.NodeID, Peer: peer, Sync: p.sync, Led: p.led, Probe: probe,
		Dial: func(addr string) (*grpc.ClientConn, error) { return rpc.DialManager(addr, p.creds) },
		Log:  p.log.With("component", "dispatcher"),
	}); err != nil {
		return err
	}
	log := p.log.With("component", "issuer")
	external, err := issuer.NewExternal(issuer.ExternalConfig{Certificate: p.creds.Certificate, Log: log})
	if err != nil {
		return err
	}
	if p.issuer, err = issuer.New(issuer.Config{Store: p.store, Peer: peer, External: external, Log: log}); err != nil {
		return err
	}
	p.server = rpc.NewServer(rpc.ServerConfig{Credentials: p.creds, Removed: p.removed, Log: p.log.With("component", "rpc")})
	p.control = control.New(control.Config{Store: p.store, External: external, Manager: p.managerStatus, Routes: p.routes})
	watch := &presence.Loop{
		Store: p.store, Reachable: p.reaches, Probe: probe, Log: p.log.With("component", "presence"),
		Grace: func(c *api.Cluster) time.Duration { return dispatcher.Grace(c.Spec.Dispatcher.HeartbeatPeriod) },
	}
	p.keeper = roles.New(roles.Config{
		Store: p.store, Raft: p.raft, Log: p.log.With("loop", "roles"),
		Hello: func(ctx context.Context, addr string) (string, error) { return rpc.Hello(ctx, addr, p.creds) },
	})
	rotate := &rotator.Loop{Store: p.store, Update: p.control.ServiceRotate, Log: p.log.With("loop", "rotator")}
	keys := &netkeys.Loop{Store: p.store, Log: p.log.With("loop", "network keys")}
	p.manager = manager.New(manager.Config{
		Store: p.store, Leadership: p.raft, Log: p.log.With("component", "manager"),
		Loops: []manager.Loop{
			{Name: "presence", Run: watch.Run}, {Name: "issuer", Run: p.issuer.Run}, {Name: "root rotation", Run: p.issuer.Rotate},
			{Name: "rotator", Run: rotate.Run}, {Name: "network keys", Run: keys.Run}, {Name: "roles", Run: p.keeper.Run}, {Name: "genesis", Run: p.found}, {Name: "own certificate", Run: p.revive},
		},
	})
	return nil
}

// found writes the swarm's first objects when this node first leads, and what
// follows from being forced to go on alone.
func (p *managerPart) found(ctx context.Context) error {
	if p.genesis != nil {
		if err := p.genesis.found(ctx, p.store); err != nil {
			return err
		}
	}
	if p.forced {
		if err := goOnAlone(ctx, p.store, p.state.NodeID, p.state.RaftID, p.state.AdvertiseAddr); err != nil {
			return err
		}
	}
	p.nowKnows()
	<-ctx.Done()
	return nil
}

// nowKnows notes that this manager knows the swarm.
func (p *managerPart) nowKnows() { p.once.Do(func() { close(p.founded) }) }

func peer(ctx context.Context) (ca.Identity, string, bool) {
	p, ok := rpc.PeerFrom(ctx)
	return p.Identity, p.Addr, ok
}

// part is something that runs until its context ends.
type part struct {
	name string
	run  func(context.Context) error
}

// run serves as a manager until ctx ends (nil), the node is taken out of the log
// (errNoManager), or something that it can't do without fails.
func (p *managerPart) run(ctx context.Context) error {
	defer close(p.done)
	p.disp.Register(p.server)
	p.issuer.Register(p.server)
	rpc.RegisterRaft(p.server, p)
	p.store.SetProposer(p.raft)
	log, ctx := errgroup.WithContext(ctx)
	// The log ends last, so that what is under way can still be written, and
	// another manager can take the lead.
	logCtx, endLog := context.WithCancel(context.WithoutCancel(ctx))
	log.Go(func() error { return named("raft", p.raft.Run(logCtx)) })
	log.Go(func() error { return p.mesh.Run(logCtx) })
	log.Go(func() error { p.followMembers(logCtx); return nil })
	log.Go(func() error { return named("rpc", p.server.Serve(p.listen)) })
	log.Go(func() error {
		defer p.server.Stop()
		defer endLog()
		rest, ctx := errgroup.WithContext(ctx)
		for _, part := range []part{
			{"dispatcher", p.whenFounded(p.disp.Run)}, {"manager", p.manager.Run}, {"joining", p.joining},
			{"membership", p.watchMembership}, {"settings", p.whenFounded(p.followSettings)}, {"files", p.whenFounded(p.keepLocked)}, {"recovery", p.askOthers},
		} {
			rest.Go(func() error { return named(part.name, part.run(ctx)) })
		}
		err := rest.Wait()
		p.pause()
		p.handOver()
		return err
	})
	return log.Wait()
}

// whenFounded runs something once this manager knows the swarm: earlier it would
// act on a state that is long gone.
func (p *managerPart) whenFounded(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-p.founded:
			return run(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *managerPart) removed(id string) bool {
	for c := range store.List[*api.Cluster](p.store.View()) {
		until, ok := c.Removed[id]
		return ok && time.Now().Before(until)
	}
	return false
}

// localAddr is how a listener is reached from this host.
func localAddr(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return a.String()
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(t.Port))
}
