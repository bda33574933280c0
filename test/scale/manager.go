package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/collector"
	"github.com/legion-swarm/legion/manager"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/manager/dispatcher"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/manager/presence"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
)

const (
	// agentsID is in the certificate that all agents share; nodeKey names the
	// metadata in which they say which node they are.
	agentsID = "agents"
	nodeKey  = "scale-node"
	batch    = 1000
)

// member is what a manager is told of itself and of others.
type member struct {
	Raft uint64
	Node string
	Addr string
}

// setup is the first line that a manager reads.
type setup struct {
	Self, First     member
	Others          []member // that the first one takes in
	Dir, Cluster    string
	Root, Cert, Key []byte
	Beat            time.Duration
	Profile         string // file; empty: none
}

// order is each line after it; answer is what the manager says to it.
type order struct {
	Do                     string // form, nodes, services, count, end
	Nodes, Tasks, Services int
}

type answer struct {
	Err    string
	Leads  bool
	States map[swarm.TaskState]int
	Heap   uint64 // live after the last collection, and garbage since
}

// process is one manager.
type process struct {
	setup
	store *store.Store
	raft  *raftnode.Node
	mesh  *rpc.Mesh
	log   *slog.Logger
}

// serve runs a manager until it is told to end.
func serve(ctx context.Context, in io.Reader, out io.Writer) error {
	orders, answers := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	p := &process{log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if err := orders.Decode(&p.setup); err != nil {
		return err
	}
	p.log = p.log.With("manager", p.Self.Node)
	if p.Profile != "" {
		f, err := os.Create(p.Profile)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // a profile
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _ = collector.Run(ctx) }() // as the daemon does; it ends with its context
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()
	for {
		var o order
		if err := orders.Decode(&o); err != nil || o.Do == "end" {
			cancel()
			return <-ended
		}
		a := p.obey(ctx, &o)
		if err := answers.Encode(a); err != nil {
			return err
		}
		select {
		case err := <-ended:
			return err
		default:
		}
	}
}

// run is the manager, put together as package node does it.
func (p *process) run(ctx context.Context) error {
	creds, err := p.credentials()
	if err != nil {
		return err
	}
	if p.store, err = store.New(store.Config{}); err != nil {
		return err
	}
	p.mesh = rpc.NewMesh(rpc.MeshConfig{
		Credentials: creds, ID: p.Self.Raft, Addr: p.Self.Addr, Log: p.log,
		Unreachable: func(ctx context.Context, id uint64) { _ = p.raft.Unreachable(ctx, id) },
		Suspect:     func(ctx context.Context, id uint64) { _ = p.raft.Suspect(ctx, id) },
		Stranger:    noStranger,
	})
	if p.raft, err = raftnode.Open(raftnode.Config{
		ID: p.Self.Raft, Dir: filepath.Join(p.Dir, p.Self.Node), Applier: p.store, Transport: transport{p.mesh}, Log: p.log,
	}); err != nil {
		return err
	}
	if p.Self == p.First {
		if err := p.raft.Bootstrap(p.Self.Addr); err != nil {
			return errors.Join(err, p.raft.Close())
		}
	}
	p.store.SetProposer(p.raft)
	disp, err := dispatcher.New(dispatcher.Config{Store: p.store, Node: p.Self.Node, Peer: caller, Sync: p.sync, Led: p.led, Log: p.log})
	if err != nil {
		return err
	}
	server := rpc.NewServer(rpc.ServerConfig{Credentials: creds, Log: p.log})
	disp.Register(server)
	rpc.RegisterRaft(server, handler{p})
	l, err := net.Listen("tcp", p.Self.Addr)
	if err != nil {
		return err
	}
	watch := &presence.Loop{
		Store: p.store, Log: p.log, Reachable: func(n *api.Node) bool { return p.mesh.Reachable(n.RaftID) },
		Grace: func(c *api.Cluster) time.Duration { return dispatcher.Grace(c.Spec.Dispatcher.HeartbeatPeriod) },
	}
	leader := manager.New(manager.Config{Store: p.store, Leadership: p.raft, Log: p.log, Loops: []manager.Loop{{Name: "presence", Run: watch.Run}}})
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{p.raft.Run, p.mesh.Run, p.peers, disp.Run, leader.Run} {
		g.Go(func() error { return run(ctx) })
	}
	g.Go(func() error { return server.Serve(l) })
	g.Go(func() error { <-ctx.Done(); server.Stop(); return nil })
	return g.Wait()
}

func (p *process) credentials() (*rpc.Credentials, error) {
	root, err := ca.ParseRoot(p.Root, nil)
	if err != nil {
		return nil, err
	}
	keys, err := ca.NewKeys(root, p.Cert, p.Key, time.Now())
	if err != nil {
		return nil, err
	}
	c := &rpc.Credentials{}
	return c, c.Set(keys)
}

// caller is the node for which an agent speaks.
func caller(ctx context.Context) (ca.Identity, string, bool) {
	p, ok := rpc.PeerFrom(ctx)
	if md, is := metadata.FromIncomingContext(ctx); is && ok && p.NodeID == agentsID && len(md[nodeKey]) == 1 {
		p.NodeID = md[nodeKey][0]
	}
	return p.Identity, p.Addr, ok
}

func (p *process) sync(ctx context.Context) error {
	_, err := p.raft.ReadIndex(ctx)
	return err
}

func (p *process) led() (bool, <-chan struct{}) {
	changed := p.raft.Changed()
	return p.raft.Status().Leader != 0, changed
}

// peers keeps the mesh connected to the members.
func (p *process) peers(ctx context.Context) error {
	for {
		changed := p.raft.Changed()
		peers := map[uint64]string{}
		for _, m := range p.raft.Status().Members {
			peers[m.ID] = m.Address
		}
		if len(peers) > 0 {
			p.mesh.SetPeers(peers)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *process) obey(ctx context.Context, o *order) *answer {
	a := &answer{}
	var err error
	switch o.Do {
	case "form":
		err = p.form(ctx)
	case "nodes":
		err = p.nodes(ctx, o.Nodes)
	case "services":
		err = p.services(ctx, o)
	case "count":
		a.States = map[swarm.TaskState]int{}
		for t := range store.List[*api.Task](p.store.View()) {
			a.States[t.Status.State]++
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		a.Heap, a.Leads = m.HeapAlloc, p.raft.Status().IsLeader
	default:
		err = fmt.Errorf("unknown order %q", o.Do)
	}
	if err != nil {
		a.Err = err.Error()
	}
	return a
}

// form makes the swarm: the first manager leads it and takes in the others.
func (p *process) form(ctx context.Context) error {
	for p.raft == nil || !p.raft.Status().IsLeader {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, m := range p.Others {
		peer := raftnode.Member{ID: m.Raft, Address: m.Addr}
		if err := errors.Join(p.raft.AddLearner(ctx, peer), p.raft.Promote(ctx, peer)); err != nil {
			return err
		}
	}
	c := &api.Cluster{}
	c.ID, c.Spec.Name, c.Spec.Dispatcher.HeartbeatPeriod = p.Cluster, "default", p.Beat
	_, err := p.store.Update(ctx, func(tx *store.Tx) error {
		for _, m := range append([]member{p.First}, p.Others...) {
			n := issuer.NewNode(m.Node, swarm.NodeRoleManager, swarm.NodeAvailabilityDrain, nil)
			n.Certificate.State, n.ManagerAddr, n.RaftID = api.CertificateIssued, m.Addr, m.Raft
			if err := store.Create(tx, n); err != nil {
				return err
			}
		}
		return store.Create(tx, c)
	})
	return err
}

// nodeID is of an agent; in the order of numbers.
func nodeID(i int) string { return fmt.Sprintf("node%021d", i) }

func (p *process) nodes(ctx context.Context, count int) error {
	for at := 0; at < count; at += batch {
		_, err := p.store.Update(ctx, func(tx *store.Tx) error {
			for i := at; i < min(at+batch, count); i++ {
				n := issuer.NewNode(nodeID(i), swarm.NodeRoleWorker, "", nil)
				n.Certificate.State = api.CertificateIssued
				if err := store.Create(tx, n); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *process) services(ctx context.Context, o *order) error {
	c := control.New(control.Config{Store: p.store})
	for i := range o.Services {
		replicas := uint64(o.Tasks / o.Services)
		if i < o.Tasks%o.Services {
			replicas++
		}
		s := &swarm.ServiceSpec{}
		s.Name, s.Mode.Replicated = fmt.Sprintf("service-%d", i), &swarm.ReplicatedService{Replicas: &replicas}
		s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:1"}
		if _, err := c.ServiceCreate(ctx, s, control.ServiceOptions{}); err != nil {
			return err
		}
	}
	return nil
}
