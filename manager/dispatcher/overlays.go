package dispatcher

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// maxUpdate bounds a message in bytes, but for what one endpoint or service
	// takes.
	maxUpdate = 1 << 20
	// maxMarks bounds what is noted of a network for a stream that does not take
	// it; beyond that, all of the network is told anew.
	maxMarks = 8192
	// maxStreams bounds the streams of one node: the old one may not have ended
	// when the next begins.
	maxStreams = 3
	// defaultDataPort is VXLAN's (RFC 7348).
	defaultDataPort = 4789
)

// overlays has the nodes that are told of networks. It notes for each what has
// changed in its networks; what is there is read from the store when it is sent.
// Safe for concurrent use.
type overlays struct {
	mu        sync.Mutex
	byNode    map[string]map[*endpointStream]struct{}
	byNetwork map[string]map[*endpointStream]struct{}
	ingress   string // the id of the network that every node is in; empty: there is none

	once   sync.Once
	synced chan struct{} // closed once ingress is known

	numbers  atomic.Uint64 // of updates, all streams together
	seen     uint64        // up to which index of the log changes are marked
	advanced chan struct{} // closed and replaced when seen changes
}

// endpointStream is one node's.
type endpointStream struct {
	node  string
	wake  chan struct{}
	ended chan struct{}        // closed when the manager stops
	keys  *swarmpb.OverlayKeys // that it was told last; of the stream's goroutine
	gone  chan struct{}        // closed when the stream has ended
	// numbers are given to updates that may take something out; nil: this node does
	// not confirm any.
	numbers *atomic.Uint64

	mu        sync.Mutex
	marks     marks
	sent      uint64        // the number of the last update that has one
	confirmed uint64        // what the node has acted on
	acted     chan struct{} // closed and replaced when confirmed changes
}

// marks are what has changed since a node was told.
type marks struct {
	all      bool // all is to be told anew
	takesOut bool // something does not serve any more
	own      bool // the node may be in other networks
	keys     bool
	networks map[string]*networkMarks
}

// networkMarks are what has changed in a network.
type networkMarks struct {
	whole               bool // all of it is to be told anew
	self                bool // the node's own addresses
	endpoints, services map[string]struct{}
}

func (m *marks) network(id string) *networkMarks {
	n := m.networks[id]
	if n == nil {
		if n = (&networkMarks{endpoints: map[string]struct{}{}, services: map[string]struct{}{}}); m.networks == nil {
			m.networks = map[string]*networkMarks{}
		}
		m.networks[id] = n
	}
	if len(n.endpoints)+len(n.services) > maxMarks {
		n.whole = true
		clear(n.endpoints)
		clear(n.services)
	}
	return n
}

func (s *endpointStream) mark(f func(m *marks)) {
	s.mu.Lock()
	f(&s.marks)
	s.mu.Unlock()
	poke(s.wake)
}

// marked takes the marks, and returns the number of the update that tells of them.
func (s *endpointStream) marked() (m marks, number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m = s.marks
	s.marks = marks{}
	if s.numbers != nil && (m.all || m.takesOut) {
		s.sent = s.numbers.Add(1)
		number = s.sent
	}
	return m, number
}

func newOverlays() *overlays {
	return &overlays{synced: make(chan struct{}), advanced: make(chan struct{}), byNode: map[string]map[*endpointStream]struct{}{}, byNetwork: map[string]map[*endpointStream]struct{}{}}
}

func (o *overlays) add(node string, confirms bool) (*endpointStream, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.byNode[node]) >= maxStreams {
		return nil, api.Errorf(api.ResourceExhausted, "node %s has %d endpoint streams already", node, maxStreams)
	}
	s := &endpointStream{
		node: node, wake: make(chan struct{}, 1), ended: make(chan struct{}), gone: make(chan struct{}),
		acted: make(chan struct{}), marks: marks{all: true},
	}
	if confirms {
		s.numbers = &o.numbers
	}
	put(o.byNode, node, s)
	return s, nil
}

func (o *overlays) remove(s *endpointStream, networks map[string]struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(s.gone)
	drop(o.byNode, s.node, s)
	for n := range networks {
		drop(o.byNetwork, n, s)
	}
}

// follow has the stream told of what changes in other networks than before.
func (o *overlays) follow(s *endpointStream, was, is map[string]struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := range was {
		if _, stays := is[n]; !stays {
			drop(o.byNetwork, n, s)
		}
	}
	for n := range is {
		put(o.byNetwork, n, s)
	}
}

func put[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]struct{}{}
	}
	m[k][v] = struct{}{}
}

func drop[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if delete(m[k], v); len(m[k]) == 0 {
		delete(m, k)
	}
}

// stop ends all streams.
func (o *overlays) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, streams := range o.byNode {
		for s := range streams {
			close(s.ended)
		}
	}
	clear(o.byNode)
	clear(o.byNetwork)
}

// Endpoints implements the Overlays service.
func (d *Dispatcher) Endpoints(req *swarmpb.EndpointsRequest, stream swarmpb.Overlays_EndpointsServer) error {
	ctx := stream.Context()
	node, err := d.caller(ctx)
	if err != nil {
		return err
	}
	if err := d.noteDataAddr(ctx, node, req.GetDataAddr()); err != nil {
		return err
	}
	// Else all that there is would not have the ingress network at first.
	select {
	case <-d.overlays.synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	s, err := d.overlays.add(node, req.GetConfirms())
	if err != nil {
		return err
	}
	known := map[string]struct{}{}
	defer func() { d.overlays.remove(s, known) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var updates []*swarmpb.EndpointsUpdate
		updates, known = d.endpointUpdates(s, known)
		for _, u := range updates {
			if err := stream.Send(u); err != nil {
				return err
			}
		}
		timer.Reset(sendGap)
		for _, c := range []<-chan struct{}{nil, s.wake} { // first the gap, then a change
			var gap <-chan time.Time
			if c == nil {
				gap = timer.C
			}
			select {
			case <-gap:
			case <-c:
			case <-s.ended:
				return api.Errorf(api.Unavailable, "the manager is stopping")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// noteDataAddr writes down by which address a node's endpoints are reached.
func (d *Dispatcher) noteDataAddr(ctx context.Context, id, addr string) error {
	if _, err := netip.ParseAddr(addr); addr != "" && err != nil {
		return api.Errorf(api.Invalid, "data path address %q is none: %w", addr, err)
	}
	n, err := d.known(ctx, id)
	if err != nil {
		return err
	}
	switch {
	case n == nil:
		return errNotInSwarm(id)
	case addr == "":
		addr = n.Status.Addr
	}
	if n.DataAddr == addr {
		return nil
	}
	return d.writer.do(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Node](tx, id)
		if old == nil {
			return errNotInSwarm(id)
		}
		u := *old
		u.DataAddr = addr
		return store.Put(tx, &u)
	})
}
