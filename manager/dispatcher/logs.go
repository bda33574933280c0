package dispatcher

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"slices"
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
	// historyPatience is how long a follower's past waits for a node that has more
	// to send before others' lines go first.
	historyPatience = time.Second
)

// LogSelector selects the tasks that match any of its ids.
type LogSelector struct{ ServiceIDs, NodeIDs, TaskIDs []string }

// LogOptions select from the tasks' output.
type LogOptions struct {
	Stdout, Stderr bool // neither: both
	Follow         bool
	Tail           int // lines a task; negative: all
	Since          time.Time

	only string // for another manager: the only node that counts; empty: all do
	// caughtUp, with only and Follow, is told when all that there was was passed on.
	caughtUp func() error
}

// LogMessage is a piece of a task's output, or a note: Data then says which
// output is missing, or is read again, and is no output itself.
type LogMessage struct {
	Note                      bool
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
// order of time: exactly without follow; with follow what there is so too, as far
// as nodes send it in time, and what comes within a small window. It returns when
// all is read, or with ctx; with follow, only with ctx. It never waits for a node
// that is not there. Without follow, an error of class Unavailable then says
// which nodes, or tasks, are missing and why, after all else was passed on; with
// follow, notes do. An error of fn ends it.
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
	feeds   map[string]*feed    // by node
	missing map[string]*absence // by node
	mute    map[string]string   // why a task's output can't be read, by task; "" for all of a node
	notes   []LogMessage        // with follow: for the reader
	added   func(*feed)         // with follow: reads a new feed
}

// absence is why a node's logs can't be had.
type absence struct {
	why  string
	at   time.Time
	told bool // the follower knows
}

// feed is what one node sends for a subscription.
type feed struct {
	node    string
	via     string                   // the other manager that it comes through; empty: none
	begun   chan struct{}            // closed when the node begins to send
	lines   chan *swarmpb.LogMessage // from the node; nil among them: with follow, all that there was was sent
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
		b: b, id: api.NewID(), selector: sel, options: o, feeds: map[string]*feed{},
		missing: map[string]*absence{}, mute: map[string]string{},
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
// the node has one already. One that had one goes on after what came through it.
func (s *subscription) ask(node string) *feed {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s.mu.Lock()
	old := s.feeds[node]
	s.mu.Unlock()
	if old != nil && !old.finished() {
		return nil
	}
	since := s.options.Since
	if last := old.reached(); !last.IsZero() {
		since = last.Add(1)
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
	defer s.mu.Unlock()
	s.feeds[f.node] = f
	if a := s.missing[f.node]; a != nil && a.told {
		s.note(LogMessage{NodeID: f.node, Data: []byte("are read again")})
	}
	delete(s.missing, f.node)
}

// reached returns the time of the last message; f may be nil.
func (f *feed) reached() time.Time {
	if f == nil {
		return time.Time{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func (f *feed) finished() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}

// pass hands the feed's messages to emit until it ends; nil for the end of what
// there was, with follow. It returns nil also when the node is lost on the way,
// which is noted. With patience, it returns errSlow when the node takes longer.
func (s *subscription) pass(ctx context.Context, f *feed, patience time.Duration, emit func(*swarmpb.LogMessage) error) error {
	late := time.NewTimer(answerTimeout)
	defer late.Stop()
	begun := f.begun
	slow := time.NewTimer(patience)
	defer slow.Stop()
	if patience == 0 {
		slow.Stop()
	}
	for {
		if patience > 0 {
			slow.Reset(patience)
		}
		select {
		case <-begun:
			late.Stop()
			begun = nil
		case <-late.C:
			f.end("it does not answer")
		case <-slow.C:
			return errSlow
		case m := <-f.lines:
			if err := s.passOne(f, m, emit); err != nil {
				return err
			}
		case <-f.ended:
			f.mu.Lock()
			why := f.why
			f.mu.Unlock()
			if why != "" {
				s.miss(f.node, why)
				if s.options.only != "" && s.options.Follow { // whoever relays it asks again
					return s.incomplete()
				}
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *subscription) passOne(f *feed, m *swarmpb.LogMessage, emit func(*swarmpb.LogMessage) error) error {
	switch {
	case m == nil && !s.options.Follow: // nothing that a node has to say here
		return nil
	case m != nil && m.GetStream() == swarmpb.LogStream_LOG_STREAM_UNKNOWN && s.options.only == "":
		s.silent(m)
		return nil
	}
	if err := emit(m); err != nil {
		return err
	}
	if at := m.GetTimestamp(); at != nil {
		f.mu.Lock()
		f.last = at.AsTime()
		f.mu.Unlock()
	}
	return nil
}

// nodesOf lists the nodes that have tasks that the selector selects.
func (s *subscription) nodesOf(view *store.View) []string {
	if s.options.only != "" {
		return []string{s.options.only}
	}
	nodes := map[string]bool{}
	for t := range s.tasks(view) {
		if t.NodeID != "" && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) {
			nodes[t.NodeID] = true
		}
	}
	for _, id := range s.selector.NodeIDs {
		nodes[id] = true
	}
	return slices.Sorted(maps.Keys(nodes))
}

// tasks are those that the selector names, and those of services that it names.
func (s *subscription) tasks(view *store.View) iter.Seq[*api.Task] {
	return func(yield func(*api.Task) bool) {
		for _, id := range s.selector.ServiceIDs {
			for t := range store.List[*api.Task](view, store.ByService(id)) {
				if !yield(t) {
					return
				}
			}
		}
		for _, id := range s.selector.TaskIDs {
			if t := store.Get[*api.Task](view, id); t != nil && !yield(t) {
				return
			}
		}
	}
}

func (s *subscription) selects(t *api.Task) bool {
	return t.NodeID != "" && (s.options.only == "" || s.options.only == t.NodeID) && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) &&
		(slices.Contains(s.selector.ServiceIDs, t.ServiceID) || slices.Contains(s.selector.TaskIDs, t.ID) ||
			slices.Contains(s.selector.NodeIDs, t.NodeID))
}

func (s *subscription) readAll(ctx context.Context, fn func(LogMessage) error) error {
	var sources []func(context.Context, func(*swarmpb.LogMessage) error) error
	for _, node := range s.nodesOf(s.b.store.View()) {
		if f := s.ask(node); f != nil {
			sources = append(sources, func(ctx context.Context, emit func(*swarmpb.LogMessage) error) error {
				return s.pass(ctx, f, 0, emit)
			})
		}
	}
	err := swarmpb.MergeLogs(ctx, sources, func(m *swarmpb.LogMessage) error { return fn(apiLog(m)) })
	if err != nil {
		return err
	}
	return s.incomplete()
}
