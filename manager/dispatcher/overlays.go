package dispatcher

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// maxEndpoints bounds how many endpoints a message has.
	maxEndpoints = 8192
	// maxStreams bounds the streams of one node: the old one may not have ended
	// when the next begins.
	maxStreams = 3
	// defaultDataPort is VXLAN's (RFC 7348).
	defaultDataPort = 4789
)

// overlays has the nodes that are told of endpoints. It notes for each what has
// changed in its networks; what is there is read from the store when it is sent.
// Safe for concurrent use.
type overlays struct {
	mu        sync.Mutex
	byNode    map[string]map[*endpointStream]struct{}
	byNetwork map[string]map[*endpointStream]struct{}
}

// endpointStream is one node's.
type endpointStream struct {
	node  string
	wake  chan struct{}
	ended chan struct{} // closed when the manager stops

	mu    sync.Mutex
	all   bool                           // all is to be told anew
	own   bool                           // the node's own tasks have changed
	dirty map[string]map[string]struct{} // tasks by network
}

func newOverlays() *overlays {
	return &overlays{byNode: map[string]map[*endpointStream]struct{}{}, byNetwork: map[string]map[*endpointStream]struct{}{}}
}

func (o *overlays) add(node string) (*endpointStream, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.byNode[node]) >= maxStreams {
		return nil, api.Errorf(api.ResourceExhausted, "node %s has %d endpoint streams already", node, maxStreams)
	}
	s := &endpointStream{node: node, wake: make(chan struct{}, 1), ended: make(chan struct{}), all: true, dirty: map[string]map[string]struct{}{}}
	put(o.byNode, node, s)
	return s, nil
}

func (o *overlays) remove(s *endpointStream, networks map[string]struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
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

// every marks all streams.
func (o *overlays) every() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, streams := range o.byNode {
		for s := range streams {
			s.mark(func() { s.all = true })
		}
	}
}

// changed marks what the change of a task means to others and to its own node.
func (o *overlays) changed(id string, was, is *api.Task) {
	if !live(was) {
		was = nil
	}
	if !live(is) {
		is = nil
	}
	if was == nil && is == nil || was != nil && is != nil && was.NodeID == is.NodeID && sameNetworks(was.Networks, is.Networks) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range []*api.Task{was, is} {
		if t == nil {
			continue
		}
		for i := range t.Networks {
			n := t.Networks[i].NetworkID
			for s := range o.byNetwork[n] {
				s.mark(func() { put(s.dirty, n, id) })
			}
		}
		for s := range o.byNode[t.NodeID] {
			s.mark(func() { s.own = true })
		}
	}
}

func sameNetworks(a, b []api.NetworkAttachment) bool {
	return slices.EqualFunc(a, b, func(x, y api.NetworkAttachment) bool {
		return x.NetworkID == y.NetworkID && slices.Equal(x.Addresses, y.Addresses)
	})
}

func (s *endpointStream) mark(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	poke(s.wake)
}

func (s *endpointStream) marked() (all, own bool, dirty map[string]map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, own, dirty = s.all, s.own, s.dirty
	s.all, s.own, s.dirty = false, false, map[string]map[string]struct{}{}
	return all, own, dirty
}

// live reports whether a task has its place in its networks: from when a node is
// to run it, so that others can reach it once it does, until it has ended.
func live(t *api.Task) bool {
	return t != nil && t.NodeID != "" && len(t.Networks) > 0 && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) && !api.Final(t.Status.State)
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
	s, err := d.overlays.add(node)
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
	case n.DataAddr == addr:
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

// endpointUpdates returns what to tell a node, and the networks that it knows of
// then.
func (d *Dispatcher) endpointUpdates(s *endpointStream, known map[string]struct{}) ([]*swarmpb.EndpointsUpdate, map[string]struct{}) {
	all, own, dirty := s.marked()
	now := known
	if all || own {
		now = networksAt(d.cfg.Store.View(), s.node)
		d.overlays.follow(s, known, now)
	}
	view := d.cfg.Store.View() // after follow: what changes from now on is marked
	first := &swarmpb.EndpointsUpdate{Complete: all, DataPort: defaultDataPort}
	if c := clusterIn(view); c != nil && c.DataPathPort != 0 {
		first.DataPort = c.DataPathPort
	}
	c := &chunks{updates: []*swarmpb.EndpointsUpdate{first}}
	for _, id := range slices.Sorted(maps.Keys(now)) {
		if _, knew := known[id]; all || !knew {
			c.whole(view, id, s.node)
		} else if len(dirty[id]) > 0 {
			c.changes(view, id, s.node, dirty[id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		if _, stays := now[id]; !stays && !all {
			c.open(id).Gone = true
		}
	}
	if !all && len(first.Networks) == 0 {
		return nil, now
	}
	return c.updates, now
}

// networksAt are the networks that a node has a task in.
func networksAt(view *store.View, node string) map[string]struct{} {
	nets := map[string]struct{}{}
	for t := range store.List[*api.Task](view, store.ByNode(node)) {
		if !live(t) {
			continue
		}
		for i := range t.Networks {
			if len(t.Networks[i].Addresses) > 0 {
				nets[t.Networks[i].NetworkID] = struct{}{}
			}
		}
	}
	return nets
}

// chunks are updates of bounded size.
type chunks struct {
	updates []*swarmpb.EndpointsUpdate
	size    int // endpoints in the last one
}

// open begins to tell of a network, or goes on in another update.
func (c *chunks) open(id string) *swarmpb.NetworkEndpoints {
	last := c.updates[len(c.updates)-1]
	if c.size >= maxEndpoints {
		last = &swarmpb.EndpointsUpdate{DataPort: last.GetDataPort()}
		c.updates, c.size = append(c.updates, last), 0
	}
	n := &swarmpb.NetworkEndpoints{NetworkId: id}
	last.Networks = append(last.Networks, n)
	return n
}

func (c *chunks) put(n *swarmpb.NetworkEndpoints, e *swarmpb.OverlayEndpoint) *swarmpb.NetworkEndpoints {
	if c.size >= maxEndpoints {
		n = c.open(n.GetNetworkId())
	}
	n.Put = append(n.Put, e)
	c.size++
	return n
}

// whole tells of all endpoints of a network that are on other nodes.
func (c *chunks) whole(view *store.View, id, node string) {
	n := c.open(id)
	n.Whole = true
	for t := range tasksIn(view, id) {
		if e := endpointOf(view, t, id, node); e != nil {
			n = c.put(n, e)
		}
	}
}

// changes tells of some tasks.
func (c *chunks) changes(view *store.View, id, node string, tasks map[string]struct{}) {
	n := c.open(id)
	for _, task := range slices.Sorted(maps.Keys(tasks)) {
		if e := endpointOf(view, store.Get[*api.Task](view, task), id, node); e != nil {
			n = c.put(n, e)
		} else {
			n.Remove = append(n.Remove, task)
		}
	}
}

// tasksIn lists the tasks that may be in a network. No spec names the ingress
// network: there it is those of services that publish a port.
func tasksIn(view *store.View, id string) func(func(*api.Task) bool) {
	n := store.Get[*api.Network](view, id)
	if n == nil || !n.Spec.Ingress {
		return store.List[*api.Task](view, store.ByNetwork(id))
	}
	return func(yield func(*api.Task) bool) {
		for s := range store.List[*api.Service](view) {
			if !api.UsesIngress(s.Spec.EndpointSpec) {
				continue
			}
			for t := range store.List[*api.Task](view, store.ByService(s.ID)) {
				if !yield(t) {
					return
				}
			}
		}
	}
}

// endpointOf is how a task is reached in a network from node; nil if it isn't.
func endpointOf(view *store.View, t *api.Task, network, node string) *swarmpb.OverlayEndpoint {
	if !live(t) || t.NodeID == node {
		return nil
	}
	i := slices.IndexFunc(t.Networks, func(a api.NetworkAttachment) bool { return a.NetworkID == network })
	addr := dataAddr(store.Get[*api.Node](view, t.NodeID))
	if i < 0 || len(t.Networks[i].Addresses) == 0 || addr == "" {
		return nil
	}
	e := &swarmpb.OverlayEndpoint{Id: t.ID, NodeAddr: addr}
	for _, a := range t.Networks[i].Addresses {
		e.Addresses = append(e.Addresses, a.Addr().String())
	}
	return e
}

// dataAddr is where other nodes send what is for a node's endpoints; empty if it
// is not known.
func dataAddr(n *api.Node) string {
	if n == nil {
		return ""
	}
	if n.DataAddr != "" {
		return n.DataAddr
	}
	return n.Status.Addr
}

// nodeMoved marks all endpoints of a node whose address has changed.
func (d *Dispatcher) nodeMoved(was, is *api.Node) {
	if is == nil || dataAddr(was) == dataAddr(is) {
		return
	}
	for t := range store.List[*api.Task](d.cfg.Store.View(), store.ByNode(is.ID)) {
		d.overlays.changed(t.ID, nil, t)
	}
}
