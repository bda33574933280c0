package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	leader "github.com/legion-swarm/legion/manager"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/manager/dispatcher"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/manager/presence"
	"github.com/legion-swarm/legion/manager/roles"
	"github.com/legion-swarm/legion/manager/rotator"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

// A manager that was not heard for so long is unreachable, as rpc.Mesh has it.
const reachTimeout = 3 * time.Second

// manager is a host's manager part while its process runs: what package node
// assembles, without certificates.
type manager struct {
	*host
	id      uint64 // in raft
	book    *contact
	log     *slog.Logger
	store   *store.Store
	raft    *raftnode.Node
	control *control.Control
	disp    *dispatcher.Dispatcher
	keeper  *roles.Keeper
	leader  *leader.Manager
	server  *grpc.Server
	listen  *bufconn.Listener
	first   bool          // the swarm begins here
	founded chan struct{} // closed when this manager knows the swarm
	once    sync.Once
	led     uint64 // the last term in which it led; guarded by checks.mu
}

// openManager opens the log that is on the host's disk.
func (h *host) openManager(id uint64, first bool) (_ *manager, err error) {
	m := &manager{
		host: h, id: id, first: first, book: &contact{addrs: map[uint64]string{}}, log: h.c.events.logger(h.id), founded: make(chan struct{}),
		listen: bufconn.Listen(1 << 20),
	}
	if m.store, err = store.New(store.Config{Now: h.now}); err != nil {
		return nil, err
	}
	m.raft, err = raftnode.Open(raftnode.Config{
		ID: id, Dir: fmt.Sprintf("/raft-%x", id), FS: h.disk, Applier: &applier{m.store, h.c.checks, h}, Transport: transport{h.c.net, h.addr, id, m.book},
		Tick: time.Second / 10, Address: h.addr, Log: m.log.With("component", "raft"), SnapshotInterval: h.c.plan.snapshotEvery, SlowFollowerEntries: h.c.plan.snapshotEvery / 4,
	})
	if err != nil {
		return nil, err
	}
	if first && m.raft.Empty() {
		if err := m.raft.Bootstrap(h.addr); err != nil {
			return nil, errors.Join(err, m.raft.Close())
		}
	}
	if err := m.assemble(); err != nil {
		return nil, errors.Join(err, m.raft.Close())
	}
	return m, nil
}

func (m *manager) assemble() (err error) {
	if m.disp, err = dispatcher.New(dispatcher.Config{
		Store: m.store, Node: m.host.node(), Peer: peer, Probe: m.probe, Log: m.log.With("component", "dispatcher"),
		Sync: func(ctx context.Context) error { _, err := m.raft.ReadIndex(ctx); return err },
		Led: func() (bool, <-chan struct{}) {
			changed := m.raft.Changed()
			return m.raft.Status().Leader != 0, changed
		},
	}); err != nil {
		return err
	}
	m.server = grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	m.control = control.New(control.Config{Store: m.store, Manager: m.status})
	watch := &presence.Loop{
		Store: m.store, Probe: m.probe, Log: m.log.With("component", "presence"),
		Reachable: func(n *api.Node) bool {
			return n.ID == m.host.node() || m.status(n).Reachability == swarm.ReachabilityReachable
		},
		Grace: func(c *api.Cluster) time.Duration { return dispatcher.Grace(c.Spec.Dispatcher.HeartbeatPeriod) },
	}
	m.keeper = roles.New(roles.Config{
		Store: m.store, Raft: m.raft, Log: m.log.With("loop", "roles"), Hello: m.hello,
	})
	rotate := &rotator.Loop{Store: m.store, Update: m.control.ServiceRotate, Log: m.log.With("loop", "rotator")}
	m.leader = leader.New(leader.Config{
		Store: m.store, Leadership: m.raft, Log: m.log.With("component", "manager"),
		Loops: []leader.Loop{{Name: "presence", Run: watch.Run}, {Name: "roles", Run: m.keeper.Run}, {Name: "rotator", Run: rotate.Run}, {Name: "genesis", Run: m.found}},
	})
	return nil
}

// peer tells which node calls: it says so itself, instead of a certificate.
func peer(ctx context.Context) (ca.Identity, string, bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get("node")) == 0 {
		return ca.Identity{}, "", false
	}
	return ca.Identity{NodeID: md.Get("node")[0], Role: swarm.NodeRoleWorker}, "10.0.0.9:999", true
}

// status is how another manager looks from here.
func (m *manager) status(n *api.Node) *swarm.ManagerStatus {
	st := m.raft.Status()
	s := &swarm.ManagerStatus{Reachability: swarm.ReachabilityUnreachable, Addr: n.ManagerAddr}
	if slices.ContainsFunc(st.Members, func(o raftnode.Member) bool { return o.ID == n.RaftID }) {
		s.Leader = st.Leader == n.RaftID
		if s.Leader || m.reaches(n.ManagerAddr) {
			s.Reachability = swarm.ReachabilityReachable
		}
	}
	return s
}

func (m *manager) reaches(addr string) bool {
	return m.c.net.heard(m.addr, addr, reachTimeout) && m.c.net.manager(addr) != nil
}

func (m *manager) probe(ctx context.Context, addr string) (bool, error) {
	t := transport{net: m.c.net, from: m.addr}
	if err := errors.Join(t.walk(ctx, m.addr, addr), t.answer(ctx, addr)); err != nil {
		return false, err
	}
	return m.c.net.manager(addr) != nil, nil
}

func (m *manager) hello(ctx context.Context, addr string) (string, error) {
	t := transport{net: m.c.net, from: m.addr}
	o, err := t.call(ctx, addr)
	if err != nil {
		return "", err
	}
	return o.host.node(), t.answer(ctx, addr)
}

// found writes the first objects of the swarm, and notes that it is known here.
func (m *manager) found(ctx context.Context) error {
	if m.first {
		if _, err := m.store.Update(ctx, m.c.genesis); err != nil {
			return err
		}
	}
	m.nowKnows()
	<-ctx.Done()
	return nil
}

func (m *manager) nowKnows() { m.once.Do(func() { close(m.founded) }) }

// run serves until ctx ends, or the log can't go on.
func (m *manager) run(ctx context.Context) error {
	m.disp.Register(m.server)
	m.store.SetProposer(&proposer{m, m.c.checks})
	log, ctx := errgroup.WithContext(ctx)
	logCtx, endLog := context.WithCancel(context.WithoutCancel(ctx))
	log.Go(func() error { return m.raft.Run(logCtx) })
	log.Go(func() error { _ = m.server.Serve(m.listen); return nil })
	log.Go(func() error { return m.c.checks.follow(logCtx, m) })
	log.Go(func() error {
		defer m.server.Stop()
		defer endLog()
		rest, ctx := errgroup.WithContext(ctx)
		rest.Go(func() error {
			select {
			case <-m.founded:
				return m.disp.Run(ctx)
			case <-ctx.Done():
				return nil
			}
		})
		rest.Go(func() error { return m.leader.Run(asLoop(ctx)) })
		rest.Go(func() error { m.joining(ctx); return nil })
		rest.Go(func() error { return m.watchMembership(ctx) })
		err := rest.Wait()
		if !m.killed() && !errors.Is(err, errNoManager) {
			m.handOver()
		}
		return err
	})
	return log.Wait()
}

// handOver has another manager lead, if this one does.
func (m *manager) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for {
		changed := m.raft.Changed()
		st := m.raft.Status()
		if st.Leader != st.ID || len(st.Voters) < 2 || m.raft.TransferLeadership(ctx, 0) != nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// genesis writes the first objects of a swarm.
func (c *cluster) genesis(tx *store.Tx) error {
	if store.Count[*api.Cluster](tx) > 0 {
		return nil
	}
	cl := &api.Cluster{}
	cl.ID = api.NewID()
	cl.Spec.Name, cl.Spec.Dispatcher.HeartbeatPeriod = "default", c.plan.heartbeat
	cl.Spec.Orchestration.TaskHistoryRetentionLimit = new(int64(2))
	if err := store.Create(tx, cl); err != nil {
		return err
	}
	ingress, err := control.Ingress(cl)
	if err != nil {
		return err
	}
	if err := store.Create(tx, ingress); err != nil {
		return err
	}
	for _, h := range c.hosts {
		role := swarm.NodeRoleWorker
		if is, _ := h.certified(); is {
			role = swarm.NodeRoleManager
		}
		n := issuer.NewNode(h.node(), role, "", nil)
		n.Certificate.State = api.CertificateIssued
		if h == c.hosts[0] {
			n.RaftID, n.ManagerAddr = firstRaftID, h.addr
		}
		if err := store.Create(tx, n); err != nil {
			return err
		}
	}
	return nil
}
