package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// maxLogReaders bounds how many read logs at once through this manager.
	maxLogReaders = 512
	// answerTimeout is how long a connected node may take to begin.
	answerTimeout = 5 * time.Second
	// followWindow is how long followed lines are held to put them in order.
	followWindow = 20 * time.Millisecond
	maxHeld      = 2000
)

// LogSelector selects the tasks that match any of its ids.
type LogSelector struct{ ServiceIDs, NodeIDs, TaskIDs []string }

// LogOptions select from the tasks' output.
type LogOptions struct {
	Stdout, Stderr bool // neither: both
	Follow         bool
	Tail           int // lines a task; negative: all
	Since          time.Time
	// Missing is told of each node whose logs can't be had, once, and why; nil:
	// nobody is. It is called from one goroutine at a time.
	Missing func(nodeID, why string)

	only string // the only node that counts; empty: all do
}

// LogMessage is a piece of a task's output.
type LogMessage struct {
	ServiceID, NodeID, TaskID string
	Stream                    string // "stdout" or "stderr"
	At                        time.Time
	Data                      []byte
	Attrs                     map[string]string
}

// LogBroker relays logs from nodes to readers. Safe for concurrent use.
type LogBroker struct {
	store *store.Store
	self  string // this manager's node
	dial  func(addr string) (*grpc.ClientConn, error)
	log   *slog.Logger

	mu        sync.Mutex
	listeners map[string]*listener     // by node
	came      chan struct{}            // closed and replaced when one comes
	subs      map[string]*subscription // by id
}

func newLogBroker(cfg Config) *LogBroker {
	return &LogBroker{
		store: cfg.Store, self: cfg.Node, dial: cfg.Dial, log: cfg.Log, came: make(chan struct{}),
		listeners: map[string]*listener{}, subs: map[string]*subscription{},
	}
}

// Logs calls fn for each message of the tasks that the selector selects, in
// order of time: exactly without follow, within a small window with. It returns
// when all is read, or with ctx; with follow, only with ctx. It never waits for
// a node that is not there: the error then, of class Unavailable, says which
// nodes are missing and why, after all else was passed on. An error of fn ends
// it.
func (b *LogBroker) Logs(ctx context.Context, sel LogSelector, o LogOptions, fn func(LogMessage) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sub, err := b.subscribe(sel, o)
	if err != nil {
		return err
	}
	defer sub.relays.Wait()
	defer b.unsubscribe(sub)
	if o.Follow {
		return sub.follow(ctx, fn)
	}
	return sub.readAll(ctx, fn)
}

// subscription is one reader's.
type subscription struct {
	b        *LogBroker
	id       string
	selector LogSelector
	options  LogOptions
	relays   sync.WaitGroup

	mu      sync.Mutex
	feeds   map[string]*feed // by node
	missing map[string]string
	added   func(*feed) // with follow: reads a new feed
}

// feed is what one node sends for a subscription.
type feed struct {
	node    string
	via     string                   // the other manager that it comes through; empty: none
	begun   chan struct{}            // closed when the node begins to send
	lines   chan *swarmpb.LogMessage // from the node
	ended   chan struct{}            // closed when the node has sent all, or is gone
	options *swarmpb.LogSubscriptionOptions

	mu    sync.Mutex
	taken bool
	over  bool
	why   string    // empty: it sent all
	last  time.Time // of the last message, by the node's clock
}

func newFeed(node, via string, o *swarmpb.LogSubscriptionOptions) *feed {
	return &feed{
		node: node, via: via, options: o, begun: make(chan struct{}), ended: make(chan struct{}),
		lines: make(chan *swarmpb.LogMessage),
	}
}

// take claims the feed for a stream; only one gets it.
func (f *feed) take() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.taken || f.over {
		return false
	}
	f.taken = true
	close(f.begun)
	return true
}

func (f *feed) end(why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.over {
		f.over, f.why = true, why
		close(f.ended)
	}
}

func (b *LogBroker) subscribe(sel LogSelector, o LogOptions) (*subscription, error) {
	s := &subscription{
		b: b, id: api.NewID(), selector: sel, options: o, feeds: map[string]*feed{}, missing: map[string]string{},
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.subs) >= maxLogReaders {
		return nil, api.Errorf(api.ResourceExhausted, "too many readers of logs at once: %d", maxLogReaders)
	}
	b.subs[s.id] = s
	return s, nil
}

func (b *LogBroker) unsubscribe(s *subscription) {
	b.mu.Lock()
	delete(b.subs, s.id)
	s.mu.Lock()
	nodes := slices.Collect(maps.Keys(s.feeds))
	for _, f := range s.feeds {
		f.end("")
	}
	s.mu.Unlock()
	for _, node := range nodes {
		if l := b.listeners[node]; l != nil {
			l.put(&swarmpb.SubscriptionMessage{Id: s.id, Close: true})
		}
	}
	b.mu.Unlock()
}

// ask makes a feed for the node, or notes why there is none. It returns nil when
// the node has one already.
func (s *subscription) ask(node string, since time.Time) *feed {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s.mu.Lock()
	old := s.feeds[node]
	s.mu.Unlock()
	if old != nil && !old.finished() {
		return nil
	}
	l := b.listeners[node]
	via := b.elsewhere(node)
	if l == nil && (via == nil || s.options.only != "") {
		s.miss(node, "it is not connected")
		return nil
	}
	if l == nil {
		f := newFeed(node, via.ID, s.wireOptions(since))
		s.keep(f)
		s.relays.Go(func() { s.relay(f, via.ManagerAddr) })
		return f
	}
	f := newFeed(node, "", s.wireOptions(since))
	s.keep(f)
	l.put(&swarmpb.SubscriptionMessage{Id: s.id, Selector: s.selector.wire(), Options: f.options})
	return f
}

func (s *subscription) keep(f *feed) {
	s.mu.Lock()
	s.feeds[f.node] = f
	s.mu.Unlock()
}

func (f *feed) finished() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}

// miss notes that a node's logs can't be had.
func (s *subscription) miss(node, why string) {
	s.mu.Lock()
	_, known := s.missing[node]
	s.missing[node] = why
	s.mu.Unlock()
	if !known && s.options.Missing != nil {
		s.options.Missing(node, why)
	}
}

func (s *subscription) incomplete() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.missing) == 0 {
		return nil
	}
	view := s.b.store.View()
	var reasons []string
	for _, id := range slices.Sorted(maps.Keys(s.missing)) {
		name := id
		if n := store.Get[*api.Node](view, id); n != nil && n.Description.Hostname != "" {
			name = n.Description.Hostname + " (" + id + ")"
		}
		reasons = append(reasons, fmt.Sprintf("node %s: %s", name, s.missing[id]))
	}
	return api.Errorf(api.Unavailable, "incomplete logs: some could not be retrieved: %s", strings.Join(reasons, "; "))
}

// pass hands the feed's messages to emit until it ends. It returns nil also when
// the node is lost on the way, which is noted.
func (s *subscription) pass(ctx context.Context, f *feed, emit func(*swarmpb.LogMessage) error) error {
	late := time.NewTimer(answerTimeout)
	defer late.Stop()
	begun := f.begun
	for {
		select {
		case <-begun:
			late.Stop()
			begun = nil
		case <-late.C:
			f.end("it does not answer")
		case m := <-f.lines:
			if err := emit(m); err != nil {
				return err
			}
			f.mu.Lock()
			f.last = m.GetTimestamp().AsTime()
			f.mu.Unlock()
		case <-f.ended:
			f.mu.Lock()
			why := f.why
			f.mu.Unlock()
			if why != "" {
				s.miss(f.node, why)
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// nodesOf lists the nodes that have tasks that the selector selects.
func (s *subscription) nodesOf(view *store.View) []string {
	if s.options.only != "" {
		return []string{s.options.only}
	}
	nodes := map[string]bool{}
	add := func(t *api.Task) {
		if t != nil && t.NodeID != "" && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) {
			nodes[t.NodeID] = true
		}
	}
	for _, id := range s.selector.ServiceIDs {
		for t := range store.List[*api.Task](view, store.ByService(id)) {
			add(t)
		}
	}
	for _, id := range s.selector.TaskIDs {
		add(store.Get[*api.Task](view, id))
	}
	for _, id := range s.selector.NodeIDs {
		nodes[id] = true
	}
	return slices.Sorted(maps.Keys(nodes))
}

func (s *subscription) selects(t *api.Task) bool {
	return t.NodeID != "" && (s.options.only == "" || s.options.only == t.NodeID) && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) &&
		(slices.Contains(s.selector.ServiceIDs, t.ServiceID) || slices.Contains(s.selector.TaskIDs, t.ID) ||
			slices.Contains(s.selector.NodeIDs, t.NodeID))
}

func (s *subscription) readAll(ctx context.Context, fn func(LogMessage) error) error {
	var sources []func(context.Context, func(*swarmpb.LogMessage) error) error
	for _, node := range s.nodesOf(s.b.store.View()) {
		if f := s.ask(node, s.options.Since); f != nil {
			sources = append(sources, func(ctx context.Context, emit func(*swarmpb.LogMessage) error) error {
				return s.pass(ctx, f, emit)
			})
		}
	}
	err := swarmpb.MergeLogs(ctx, sources, func(m *swarmpb.LogMessage) error { return fn(apiLog(m)) })
	if err != nil {
		return err
	}
	return s.incomplete()
}
