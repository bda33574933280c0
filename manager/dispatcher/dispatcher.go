package dispatcher

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// Config configures a dispatcher.
type Config struct {
	// Store is required.
	Store *store.Store
	// Node is the id of the manager that this is. Required.
	Node string
	// Sync returns when the store has all that was committed before the call.
	// Nil: it always has.
	Sync func(ctx context.Context) error
	// Led tells whether some manager leads, so that writes can succeed; the
	// channel is closed when that may have changed. Nil: one always does.
	Led func() (bool, <-chan struct{})
	// Probe reports whether a process accepts connections at an address (false:
	// its host says that none does), or an error when nobody answers. Nil: not
	// known.
	Probe func(ctx context.Context, addr string) (bool, error)
	// Peer tells who makes the call that ctx belongs to, and its address
	// (host:port). Required.
	Peer func(ctx context.Context) (id ca.Identity, addr string, ok bool)
	// Dial connects to another manager (host:port), for the logs of nodes that it
	// serves and for what they confirm. Nil: those are missing.
	Dial func(addr string) (*grpc.ClientConn, error)
	// Log is required.
	Log *slog.Logger
}

// Dispatcher serves the nodes that are connected to this manager. All methods
// are safe for concurrent use; calls are answered while Run runs.
type Dispatcher struct {
	swarmpb.UnimplementedDispatcherServer
	swarmpb.UnimplementedOverlaysServer

	overlays    *overlays
	withdrawals withdrawals
	names       ownNames

	cfg    Config
	writer *writer
	specs  *specCache
	logs   *LogBroker

	pace  pace
	leads leadership
	awake awake

	mu       sync.Mutex
	running  context.Context //nolint:containedctx // Run's; nil when it is not running
	work     *sync.WaitGroup // what is done in the background for Run
	nodes    map[string]*record
	managers []swarm.Peer
}

// record is what is known of a node apart from its session. Guarded by
// Dispatcher.mu.
type record struct {
	session *session    // nil when there is none
	recent  []time.Time // when it registered of late
	// awaited is the id of a session that the store has with this manager, and
	// this manager does not have; timer ends the wait for the node.
	awaited string
	timer   *time.Timer
}

// New returns a dispatcher. It has no effects until Run.
func New(cfg Config) (*Dispatcher, error) {
	if cfg.Store == nil || cfg.Peer == nil || cfg.Log == nil || cfg.Node == "" {
		return nil, errors.New("dispatcher: Store, Node, Peer and Log are required")
	}
	if cfg.Sync == nil {
		cfg.Sync = func(context.Context) error { return nil }
	}
	if cfg.Led == nil {
		cfg.Led = func() (bool, <-chan struct{}) { return true, nil }
	}
	return &Dispatcher{
		cfg: cfg, writer: newWriter(cfg.Store), specs: &specCache{},
		overlays: newOverlays(), logs: newLogBroker(cfg), nodes: map[string]*record{},
	}, nil
}

// Logs returns the relay of logs.
func (d *Dispatcher) Logs() *LogBroker { return d.logs }

// Register registers the services Dispatcher, Overlays, Attachments, LogBroker and
// Logs.
func (d *Dispatcher) Register(s grpc.ServiceRegistrar) {
	swarmpb.RegisterDispatcherServer(s, d)
	swarmpb.RegisterOverlaysServer(s, d)
	swarmpb.RegisterAttachmentsServer(s, &attachments{Dispatcher: d})
	swarmpb.RegisterLogBrokerServer(s, &brokerServer{b: d.logs, peer: d.caller})
	swarmpb.RegisterLogsServer(s, &logsServer{b: d.logs})
}

// caller returns the node that makes the call.
func (d *Dispatcher) caller(ctx context.Context) (string, error) {
	who, _, ok := d.cfg.Peer(ctx)
	if !ok || who.NodeID == "" {
		return "", api.Errorf(api.Unauthenticated, "this is for nodes of the swarm")
	}
	return who.NodeID, nil
}

// Run serves nodes until ctx ends; then all sessions end.
func (d *Dispatcher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var work sync.WaitGroup
	d.mu.Lock()
	d.running, d.work = ctx, &work
	d.mu.Unlock()
	defer work.Wait()
	defer d.stop()
	g.Go(func() error { return d.writer.run(ctx) })
	g.Go(func() error { return d.watch(ctx) })
	g.Go(func() error { return d.guardLead(ctx) })
	g.Go(func() error { return d.awake.run(ctx) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (d *Dispatcher) stop() {
	d.overlays.stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = nil
	for id, r := range d.nodes {
		r.expect("", nil)
		if r.session != nil {
			r.session.end(api.Errorf(api.Unavailable, "the manager is stopping"))
		}
		delete(d.nodes, id)
	}
}

// background runs f while Run runs. False when it does not.
func (d *Dispatcher) background(f func(ctx context.Context)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == nil {
		return false
	}
	ctx := d.running
	d.work.Go(func() { f(ctx) })
	return true
}

// watch marks at the sessions what changes in the store.
func (d *Dispatcher) watch(ctx context.Context) error {
	for {
		view, w := d.cfg.Store.Watch(store.KindTask, store.KindNode, store.KindCluster, store.KindService, store.KindNetwork)
		d.resync(view)
		err := d.follow(ctx, w)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		d.cfg.Log.Info("fell behind the store; all sessions are compared anew")
	}
}

func (d *Dispatcher) follow(ctx context.Context, w *store.Watcher) error {
	for {
		changes, view, err := w.NextView(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes {
			d.changed(c)
		}
		d.overlays.reached(view.Index())
	}
}

// resync marks everything at all sessions.
func (d *Dispatcher) resync(view *store.View) {
	managers := managersIn(view)
	d.overlays.resync(view)
	d.overlays.reached(view.Index())
	d.mu.Lock()
	d.managers = managers
	for _, r := range d.nodes {
		if r.session != nil {
			r.session.markAll()
		}
	}
	d.mu.Unlock()
	for n := range store.List[*api.Node](view) {
		d.reconcile(n)
	}
}

func (d *Dispatcher) changed(c store.Change) {
	switch c.Kind {
	case store.KindTask:
		was, is := object[api.Task](c.Old), object[api.Task](c.New)
		d.overlays.taskChanged(c.ID, was, is)
		for i, t := range [...]*api.Task{was, is} {
			if t != nil && t.NodeID != "" && (i == 0 || was == nil || was.NodeID != t.NodeID) {
				d.at(t.NodeID, func(s *session) { s.markTask(c.ID, tells(was, is)) })
			}
		}
	case store.KindNode:
		d.nodeChanged(c.ID, object[api.Node](c.Old), object[api.Node](c.New))
	case store.KindService:
		d.overlays.serviceChanged(c.ID, object[api.Service](c.Old), object[api.Service](c.New))
	case store.KindNetwork:
		d.overlays.networkChanged(c.ID, object[api.Network](c.Old), object[api.Network](c.New))
	case store.KindCluster:
		if !proto.Equal(overlayKeys(object[api.Cluster](c.Old)), overlayKeys(object[api.Cluster](c.New))) {
			d.overlays.every(func(m *marks) { m.keys = true })
		}
		d.every((*session).markNode)
	}
}

// tells reports whether a node that has a task must hear of its change: it need not
// of what it said itself.
func tells(was, is *api.Task) bool {
	assigned := api.Rank(swarm.TaskStateAssigned)
	return was == nil || is == nil || was.NodeID != is.NodeID || api.Rank(was.Status.State) < assigned ||
		api.Final(was.Status.State) != api.Final(is.Status.State) || !sameForNode(sentOf(was), sentOf(is))
}

func object[T any](o any) *T {
	t, _ := o.(*T)
	return t
}

// at calls f with the node's session, if it has one.
func (d *Dispatcher) at(node string, f func(*session)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.nodes[node]; r != nil && r.session != nil {
		f(r.session)
	}
}

func (d *Dispatcher) every(f func(*session)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.nodes {
		if r.session != nil {
			f(r.session)
		}
	}
}

func (d *Dispatcher) nodeChanged(id string, was, is *api.Node) {
	d.overlays.nodeChanged(d.cfg.Store.View(), id, was, is)
	if is == nil {
		d.removed(id)
	} else {
		d.at(id, func(s *session) { s.markNode() })
		d.reconcile(is)
		if was != nil && was.Session != is.Session && is.Session.Manager != d.cfg.Node {
			d.logs.moved(id, is.Session.Manager)
		}
	}
	if managerAddr(was) == managerAddr(is) {
		return
	}
	managers := managersIn(d.cfg.Store.View())
	d.mu.Lock()
	same := reflect.DeepEqual(managers, d.managers)
	d.managers = managers
	d.mu.Unlock()
	if !same {
		d.every((*session).markNode)
	}
}

// managerAddr returns where others reach the node as a manager; empty for nil
// and for workers.
func managerAddr(n *api.Node) string {
	if n == nil || n.Role != swarm.NodeRoleManager {
		return ""
	}
	return n.ManagerAddr
}

func managersIn(view *store.View) []swarm.Peer {
	var peers []swarm.Peer
	for n := range store.List[*api.Node](view) {
		if addr := managerAddr(n); addr != "" {
			peers = append(peers, swarm.Peer{NodeID: n.ID, Addr: addr})
		}
	}
	return peers
}

// clusterIn returns the cluster's object; nil when there is none yet.
func clusterIn(r store.Reader) *api.Cluster {
	for c := range store.List[*api.Cluster](r) {
		return c
	}
	return nil
}

func errNotInSwarm(id string) error {
	return api.Errorf(api.NotFound, "node %s is not part of the swarm: it was removed", id)
}
