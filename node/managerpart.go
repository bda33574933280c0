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
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

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

// managerPart is what a manager has besides: the store on its log, the loops of
// the leader, and the services for other nodes.
type managerPart struct {
	dir   string // <data-root>/swarm
	state *membership
	creds *rpc.Credentials
	log   *slog.Logger

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
	done    chan struct{} // closed when run has returned
}

// openManager opens the log and takes the port; nothing runs yet. Call run, or
// close.
func (m *member) openManager(g *genesis) (_ *managerPart, err error) {
	p := &managerPart{
		dir: m.dir, state: m.membership(), creds: m.creds, log: m.log, genesis: g,
		founded: make(chan struct{}), done: make(chan struct{}),
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
	if p.raft, err = raftnode.Open(p.raftConfig()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.raft.Close())
		}
	}()
	if g != nil {
		if err := p.raft.Bootstrap(p.state.AdvertiseAddr); err != nil {
			return nil, err
		}
	}
	return p, p.assemble()
}

// close gives back what openManager took, if run was never called.
func (p *managerPart) close() error { return errors.Join(p.listen.Close(), p.raft.Close()) }

// forget removes the log of a node that is no manager any more.
func (p *managerPart) forget() error {
	if err := os.RemoveAll(filepath.Join(p.dir, raftDir)); err != nil {
		return fmt.Errorf("remove the raft log of a manager that was: %w", err)
	}
	return nil
}

func (p *managerPart) raftConfig() raftnode.Config {
	return raftnode.Config{
		ID: raftID(p.state.NodeID), Dir: filepath.Join(p.dir, raftDir), Applier: p.store,
		Tick: raftTick, Log: p.log.With("component", "raft"),
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

func (p *managerPart) assemble() (err error) {
	if p.disp, err = dispatcher.New(dispatcher.Config{Store: p.store, Peer: peer, Log: p.log.With("component", "dispatcher")}); err != nil {
		return err
	}
	if p.issuer, err = issuer.New(issuer.Config{Store: p.store, Peer: peer, Log: p.log.With("component", "issuer")}); err != nil {
		return err
	}
	p.control = control.New(control.Config{Store: p.store, NewToken: newToken, Manager: p.managerStatus})
	p.manager = manager.New(manager.Config{
		Store: p.store, Leadership: p.raft, Log: p.log.With("component", "manager"),
		Loops: []manager.Loop{{Name: "dispatcher", Run: p.disp.Lead}, {Name: "issuer", Run: p.issuer.Run}, {Name: "genesis", Run: p.found}},
	})
	return nil
}

// found writes the swarm's first objects when this node first leads.
func (p *managerPart) found(ctx context.Context) error {
	if p.genesis != nil {
		if err := p.genesis.found(ctx, p.store); err != nil {
			return err
		}
	}
	p.once.Do(func() { close(p.founded) })
	<-ctx.Done()
	return nil
}

// managerStatus is what raft knows of a manager.
func (p *managerPart) managerStatus(n *api.Node) *swarm.ManagerStatus {
	id := raftID(n.ID)
	st := p.raft.Status()
	s := &swarm.ManagerStatus{Leader: st.Leader == id, Reachability: swarm.ReachabilityUnreachable, Addr: n.ManagerAddr}
	if id == st.ID || st.Leader == id {
		s.Reachability = swarm.ReachabilityReachable
	}
	return s
}

func newToken(c *api.Cluster) (string, error) {
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

// run serves as a manager until ctx ends (nil), or something that it can't do
// without fails.
func (p *managerPart) run(ctx context.Context) error {
	defer close(p.done)
	server := rpc.NewServer(rpc.ServerConfig{Credentials: p.creds, Removed: p.removed, Log: p.log.With("component", "rpc")})
	p.disp.Register(server)
	p.issuer.Register(server)
	p.store.SetProposer(p.raft)
	log, ctx := errgroup.WithContext(ctx)
	// The log ends last, so that what is under way can still be written.
	logCtx, endLog := context.WithCancel(context.WithoutCancel(ctx))
	log.Go(func() error { return named("raft", p.raft.Run(logCtx)) })
	log.Go(func() error {
		defer endLog()
		rest, ctx := errgroup.WithContext(ctx)
		for name, run := range map[string]func(context.Context) error{
			"dispatcher": p.disp.Run, "manager": p.manager.Run,
			"rpc": func(context.Context) error { return server.Serve(p.listen) },
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
