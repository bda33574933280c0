package dispatcher

import (
	"context"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	defaultPeriod = 5 * time.Second
	maxJitter     = 500 * time.Millisecond
	graceFactor   = 3
	// maxSlack bounds what is taken from the grace period so that a replacement
	// runs before it is over.
	maxSlack = 500 * time.Millisecond
	// maxStalls bounds how often in a row it spares a node that its manager stood still.
	maxStalls = 3

	registerWindow = 8 * time.Second
	registerLimit  = 12

	maxReports     = 4         // UpdateTaskStatus calls of one session at once
	maxText        = 2048      // bytes of a status' message or error
	maxPorts       = 128       // of a status
	maxChunk       = 256       // statuses that go in one transaction together
	maxDescription = 256 << 10 // bytes of a node's description
	managerWeight  = 10
)

// session is one node's connection. Its id fences everything the node says.
type session struct {
	id, node string
	reports  chan struct{} // slots

	ended chan struct{} // closed by end
	once  sync.Once
	cause error // set before ended is closed

	taskWake chan struct{}
	nodeWake chan struct{}

	mu        sync.Mutex
	all       bool // every task is to be compared
	dirty     map[string]struct{}
	assigning bool
	timer     *time.Timer   // expires without heart-beats
	heard     time.Time     // when the node's last heart-beat came
	limit     time.Duration // how long it may be silent from then on
	stood     time.Duration // of this manager's standing still, what has been made up for
	stalls    int           // times since heard that it was
	paused    bool          // the node said that it starts again
	marking   bool          // READY is being written

	registered bool // the store has it; guarded by Dispatcher.mu
}

// Grace is how long a node may be silent at a heart-beat period (0: the default
// one): three periods, less what it takes to run a replacement.
func Grace(period time.Duration) time.Duration {
	if period <= 0 {
		period = defaultPeriod
	}
	return graceFactor*period - min(period/2, maxSlack)
}

// end ends the session; only the first cause counts. Does not block.
func (s *session) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.ended)
		s.mu.Lock()
		if s.timer != nil {
			s.timer.Stop()
		}
		s.mu.Unlock()
	})
}

func (s *session) live() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// markTask has a task compared: at once if there is news for the node, else with
// what comes next.
func (s *session) markTask(id string, now bool) {
	s.mu.Lock()
	if s.dirty == nil {
		s.dirty = map[string]struct{}{}
	}
	s.dirty[id] = struct{}{}
	s.mu.Unlock()
	if now {
		poke(s.taskWake)
	}
}

func (s *session) markNode() { poke(s.nodeWake) }

func (s *session) markAll() {
	s.mu.Lock()
	s.all = true
	s.mu.Unlock()
	poke(s.taskWake)
	poke(s.nodeWake)
}

// marked takes what is marked.
func (s *session) marked() (all bool, ids map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, ids = s.all, s.dirty
	s.all, s.dirty = false, nil
	return all, ids
}

// current returns the caller's session if id is it.
func (d *Dispatcher) current(ctx context.Context, id string) (*session, error) {
	node, err := d.caller(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.nodes[node]
	if r == nil || r.session == nil || r.session.id != id || !r.session.live() {
		return nil, api.Errorf(api.Conflict, "session invalid: node %s has no such session with this manager; it must open a new one", node)
	}
	return r.session, nil
}

// open makes a session for the node in place of the one it may have.
func (d *Dispatcher) open(node string) (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == nil {
		return nil, api.Errorf(api.Unavailable, "this manager does not take sessions now")
	}
	r := d.record(node)
	if !r.admit(time.Now()) {
		return nil, api.Errorf(api.ResourceExhausted, "node %s registers too often: more than %d times in %v", node, registerLimit, registerWindow)
	}
	if r.session != nil {
		r.session.end(api.Errorf(api.Conflict, "the node opened another session"))
	}
	now := time.Now()
	s := &session{
		id: api.NewID(), node: node, reports: make(chan struct{}, maxReports),
		ended: make(chan struct{}), taskWake: make(chan struct{}, 1), nodeWake: make(chan struct{}, 1),
		heard: now, stood: d.awake.stood(now),
	}
	r.session = s
	r.expect("", nil)
	return s, nil
}

func (r *record) admit(now time.Time) bool {
	kept := r.recent[:0]
	for _, t := range r.recent {
		if now.Sub(t) < registerWindow {
			kept = append(kept, t)
		}
	}
	r.recent = kept
	if len(kept) >= registerLimit {
		return false
	}
	r.recent = append(kept, now)
	return true
}

// Session implements the Dispatcher service.
func (d *Dispatcher) Session(req *swarmpb.SessionRequest, stream swarmpb.Dispatcher_SessionServer) error {
	ctx := stream.Context()
	who, addr, ok := d.cfg.Peer(ctx)
	if !ok || who.NodeID == "" {
		return api.Errorf(api.Unauthenticated, "the dispatcher is for nodes of the swarm")
	}
	if n := proto.Size(req.GetDescription()); n > maxDescription {
		return api.Errorf(api.Invalid, "node %s describes itself in %d bytes; at most %d are accepted", who.NodeID, n, maxDescription)
	}
	if led, _ := d.cfg.Led(); !led {
		return errUnled()
	}
	if n, err := d.known(ctx, who.NodeID); err != nil {
		return err
	} else if n == nil {
		return errNotInSwarm(who.NodeID)
	}
	s, err := d.open(who.NodeID)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	limit := Grace(d.period())
	s.mu.Lock()
	s.limit, s.timer = limit, time.AfterFunc(limit, func() { d.expire(s) })
	s.mu.Unlock()
	if err := d.register(ctx, s, req.GetDescription(), host); err != nil {
		s.end(err)
		d.look(s.node)
		return err
	}
	d.mu.Lock()
	s.registered = true
	d.mu.Unlock()
	d.cfg.Log.Debug("node opened a session", "node", s.node, "session", s.id)
	err = d.talk(ctx, s, stream)
	d.broken(s)
	return err
}

// news is what a session's messages say, to see when it changes.
type news struct {
	spec     swarm.NodeSpec
	role     swarm.NodeRole
	cert     api.Certificate
	managers []swarm.Peer
	root     string
}

// talk tells the node of itself and of the managers, until the session ends.
func (d *Dispatcher) talk(ctx context.Context, s *session, stream swarmpb.Dispatcher_SessionServer) error {
	var last *news
	for {
		n, m, err := d.news(s)
		if err != nil {
			return err
		}
		if last == nil || !reflect.DeepEqual(n, last) {
			if err := stream.Send(m); err != nil {
				return err
			}
			last = n
		}
		select {
		case <-s.nodeWake:
		case <-s.ended:
			return s.cause
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Dispatcher) news(s *session) (*news, *swarmpb.SessionMessage, error) {
	view := d.cfg.Store.View()
	node := store.Get[*api.Node](view, s.node)
	if node == nil {
		return nil, nil, errNotInSwarm(s.node)
	}
	n := &news{spec: node.Spec, role: node.Role, cert: node.Certificate}
	if c := clusterIn(view); c != nil {
		n.root = string(ca.Trusted(&c.RootCA))
	}
	d.mu.Lock()
	n.managers = d.managers
	d.mu.Unlock()
	m := &swarmpb.SessionMessage{SessionId: s.id, Node: swarmpb.NewNode(node), RootCA: []byte(n.root)}
	for _, p := range n.managers {
		m.Managers = append(m.Managers, &swarmpb.WeightedPeer{
			Peer: &swarmpb.Peer{NodeId: p.NodeID, Addr: p.Addr}, Weight: managerWeight,
		})
	}
	return n, m, nil
}

// period returns the cluster's heart-beat period.
func (d *Dispatcher) period() time.Duration {
	if c := clusterIn(d.cfg.Store.View()); c != nil && c.Spec.Dispatcher.HeartbeatPeriod > 0 {
		return c.Spec.Dispatcher.HeartbeatPeriod
	}
	return defaultPeriod
}

// Heartbeat implements the Dispatcher service. The period that it answers is a
// little shorter than the cluster's, by chance, so that nodes spread out.
func (d *Dispatcher) Heartbeat(ctx context.Context, req *swarmpb.HeartbeatRequest) (*swarmpb.HeartbeatResponse, error) {
	s, err := d.current(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	period := d.period()
	if f := req.GetFarewell(); f != swarmpb.Farewell_FAREWELL_NONE {
		d.farewell(s, f == swarmpb.Farewell_FAREWELL_LEAVE)
		return &swarmpb.HeartbeatResponse{Period: durationpb.New(period)}, nil
	}
	limit := Grace(period)
	s.mu.Lock()
	if s.live() && s.timer != nil {
		now := time.Now()
		s.heard, s.stood, s.stalls, s.limit = now, d.awake.stood(now), 0, limit
		s.timer.Reset(limit)
	}
	s.mu.Unlock()
	jitter := min(period/10, maxJitter)
	return &swarmpb.HeartbeatResponse{Period: durationpb.New(period - rand.N(jitter+1))}, nil
}
