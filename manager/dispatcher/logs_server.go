package dispatcher

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// listener is a node that can be asked for logs.
type listener struct {
	node string
	wake chan struct{}
	gone chan struct{}
	once sync.Once

	mu    sync.Mutex
	queue []*swarmpb.SubscriptionMessage // bounded by maxLogReaders
}

func (l *listener) put(m *swarmpb.SubscriptionMessage) {
	l.mu.Lock()
	l.queue = append(l.queue, m)
	l.mu.Unlock()
	poke(l.wake)
}

func (l *listener) take() []*swarmpb.SubscriptionMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = nil
	return q
}

func (l *listener) close() { l.once.Do(func() { close(l.gone) }) }

// listen makes the node one that can be asked. An earlier listener of it ends.
func (b *LogBroker) listen(node string) *listener {
	l := &listener{node: node, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	b.mu.Lock()
	if old := b.listeners[node]; old != nil {
		old.close()
		b.lost(node)
	}
	b.listeners[node] = l
	close(b.came)
	b.came = make(chan struct{})
	var followers []*subscription
	for _, s := range b.subs {
		s.endFeed(node, func(f *feed) bool { return f.via != "" })
		if s.options.Follow {
			followers = append(followers, s)
		}
	}
	b.mu.Unlock()
	for _, s := range followers {
		s.back(node)
	}
	return l
}

func (b *LogBroker) leave(l *listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.close()
	if b.listeners[l.node] == l {
		delete(b.listeners, l.node)
		b.lost(l.node)
	}
}

// lost ends what the node was sending. Called with mu held.
func (b *LogBroker) lost(node string) {
	for _, s := range b.subs {
		s.endFeed(node, func(f *feed) bool { return f.via == "" })
	}
}

// endFeed ends the node's feed, if it is one of those.
func (s *subscription) endFeed(node string, which func(*feed) bool) {
	s.mu.Lock()
	f := s.feeds[node]
	s.mu.Unlock()
	if f != nil && which(f) {
		f.end("the connection to it broke")
	}
}

// drop forgets a node that is down.
func (b *LogBroker) drop(node string) {
	b.mu.Lock()
	l := b.listeners[node]
	b.mu.Unlock()
	if l != nil {
		b.leave(l)
	}
}

func (b *LogBroker) feed(sub, node string) *feed {
	b.mu.Lock()
	s := b.subs[sub]
	b.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.feeds[node]
}

// brokerServer is the LogBroker service, for nodes.
type brokerServer struct {
	swarmpb.UnimplementedLogBrokerServer
	b    *LogBroker
	peer func(ctx context.Context) (node string, err error)
}

// ListenSubscriptions implements the LogBroker service.
func (s *brokerServer) ListenSubscriptions(_ *swarmpb.ListenSubscriptionsRequest, stream swarmpb.LogBroker_ListenSubscriptionsServer) error {
	ctx := stream.Context()
	node, err := s.peer(ctx)
	if err != nil {
		return err
	}
	l := s.b.listen(node)
	defer s.b.leave(l)
	for {
		for _, m := range l.take() {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-l.wake:
		case <-l.gone:
			return api.Errorf(api.Unavailable, "the node is listening on another stream")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// PublishLogs implements the LogBroker service.
func (s *brokerServer) PublishLogs(stream swarmpb.LogBroker_PublishLogsServer) error {
	node, err := s.peer(stream.Context())
	if err != nil {
		return err
	}
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	f := s.b.feed(m.GetSubscriptionId(), node)
	if f == nil || !f.take() {
		return api.Errorf(api.NotFound, "log subscription %q is not open for node %s", m.GetSubscriptionId(), node)
	}
	id := m.GetSubscriptionId()
	defer f.end("it stopped sending before all was sent")
	own := s.b.ownTasks(node)
	for first := true; ; first = false {
		if m.GetSubscriptionId() != id {
			return api.Errorf(api.Invalid, "a stream of logs is of one subscription")
		}
		// The first batch of nothing only says which subscription it is.
		messages := own(m.GetMessages())
		if len(messages) > 0 || len(m.GetMessages()) == 0 && !first && !m.GetClose() {
			if err := pour(stream.Context(), f, messages); err != nil {
				return err
			}
		}
		if m.GetClose() {
			f.end("")
			return stream.SendAndClose(&swarmpb.PublishLogsResponse{})
		}
		if m, err = stream.Recv(); errors.Is(err, io.EOF) {
			return stream.SendAndClose(&swarmpb.PublishLogsResponse{})
		} else if err != nil {
			return err
		}
	}
}

// ownTasks returns a filter for a node's messages: which node they are from is not
// the node's to say, and they are of tasks that it has. What it tells of one that
// is gone from the store is dropped: clients can't name it.
func (b *LogBroker) ownTasks(node string) func([]*swarmpb.LogMessage) []*swarmpb.LogMessage {
	known := map[string]*api.Task{}
	return func(messages []*swarmpb.LogMessage) []*swarmpb.LogMessage {
		out := messages[:0]
		for _, m := range messages {
			if m.Context == nil {
				m.Context = &swarmpb.LogContext{}
			}
			m.Context.NodeId = node
			id := m.Context.TaskId
			if m.GetStream() == swarmpb.LogStream_LOG_STREAM_UNKNOWN && id == "" {
				out = append(out, m)
				continue
			}
			t := known[id]
			if t == nil {
				t = store.Get[*api.Task](b.store.View(), id)
			}
			if t == nil || t.NodeID != node {
				continue
			}
			known[id] = t
			m.Context.ServiceId = t.ServiceID
			out = append(out, m)
		}
		return out
	}
}

// pour hands messages to the reader, at the reader's pace; no messages are the
// end of what there was.
func pour(ctx context.Context, f *feed, messages []*swarmpb.LogMessage) error {
	if len(messages) == 0 {
		messages = []*swarmpb.LogMessage{nil}
	}
	for _, m := range messages {
		select {
		case f.lines <- m:
		case <-f.ended:
			return api.Errorf(api.NotFound, "the log subscription is closed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// logsServer is the Logs service, for other managers.
type logsServer struct {
	swarmpb.UnimplementedLogsServer
	b *LogBroker
}

// SubscribeLogs implements the Logs service.
func (s *logsServer) SubscribeLogs(req *swarmpb.SubscribeLogsRequest, stream swarmpb.Logs_SubscribeLogsServer) error {
	sel, o := req.GetSelector(), req.GetOptions()
	options := LogOptions{Follow: o.GetFollow(), Tail: -1, only: req.GetNodeId()}
	if o.GetTail() < 0 {
		options.Tail = int(-o.GetTail() - 1)
	}
	if o.GetSince().IsValid() {
		options.Since = o.GetSince().AsTime()
	}
	for _, stream := range o.GetStreams() {
		options.Stdout = options.Stdout || stream == swarmpb.LogStream_LOG_STREAM_STDOUT
		options.Stderr = options.Stderr || stream == swarmpb.LogStream_LOG_STREAM_STDERR
	}
	if options.only != "" {
		s.b.await(stream.Context(), options.only)
	}
	options.caughtUp = func() error { return stream.Send(&swarmpb.SubscribeLogsMessage{}) }
	selector := LogSelector{ServiceIDs: sel.GetServiceIds(), NodeIDs: sel.GetNodeIds(), TaskIDs: sel.GetTaskIds()}
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	return s.b.Logs(stream.Context(), selector, options, func(m LogMessage) error {
		return stream.Send(&swarmpb.SubscribeLogsMessage{Messages: []*swarmpb.LogMessage{wireLog(m)}})
	})
}

func wireLog(m LogMessage) *swarmpb.LogMessage {
	out := &swarmpb.LogMessage{
		Context: &swarmpb.LogContext{ServiceId: m.ServiceID, NodeId: m.NodeID, TaskId: m.TaskID},
		Data:    m.Data, Stream: swarmpb.LogStream_LOG_STREAM_STDOUT,
	}
	if !m.At.IsZero() {
		out.Timestamp = timestamppb.New(m.At)
	}
	switch {
	case m.Note:
		out.Stream = swarmpb.LogStream_LOG_STREAM_UNKNOWN
	case m.Stream == "stderr":
		out.Stream = swarmpb.LogStream_LOG_STREAM_STDERR
	}
	for k, v := range m.Attrs {
		out.Attrs = append(out.Attrs, &swarmpb.LogAttr{Key: k, Value: v})
	}
	return out
}
