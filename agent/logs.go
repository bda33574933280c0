package agent

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	maxSubscriptions = 256
	maxFollowed      = 1024 // tasks that one subscription follows
	maxLogBatch      = 512 << 10
	maxLogLines      = 1000
)

// serveLogs answers the manager's log subscriptions.
func (s *session) serveLogs(ctx context.Context) error {
	stream, err := s.logs.ListenSubscriptions(ctx, &swarmpb.ListenSubscriptionsRequest{})
	if err != nil {
		return err
	}
	open := map[string]context.CancelFunc{}
	ended := make(chan string)
	received := make(chan *swarmpb.SubscriptionMessage)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			select {
			case received <- m:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case id := <-ended:
				open[id]()
				delete(open, id)
			case m := <-received:
				if stop, ok := open[m.GetId()]; ok {
					if m.GetClose() {
						stop()
					}
					continue
				}
				if m.GetClose() {
					continue
				}
				if len(open) >= maxSubscriptions {
					s.cfg.Log.Warn("too many log subscriptions at once; one is refused", "limit", maxSubscriptions)
					continue
				}
				sub, stop := context.WithCancel(ctx)
				open[m.GetId()] = stop
				g.Go(func() error {
					s.publish(sub, m)
					select {
					case ended <- m.GetId():
					case <-ctx.Done():
						stop()
					}
					return nil
				})
			}
		}
	})
	return g.Wait()
}

// publish sends the logs of one subscription until they end, or ctx does.
func (s *session) publish(ctx context.Context, m *swarmpb.SubscriptionMessage) {
	stream, err := s.logs.PublishLogs(ctx)
	if err != nil {
		return
	}
	send := func(batch []*swarmpb.LogMessage) error {
		return stream.Send(&swarmpb.PublishLogsMessage{SubscriptionId: m.GetId(), Messages: batch})
	}
	// An empty first message ties the stream to the subscription even if there is
	// nothing to send.
	if err = send(nil); err == nil {
		err = s.worker.logs(ctx, m, send)
	}
	if err == nil {
		err = stream.Send(&swarmpb.PublishLogsMessage{SubscriptionId: m.GetId(), Close: true})
	}
	_, closeErr := stream.CloseAndRecv()
	if err = first(err, closeErr); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		s.cfg.Log.Debug("publishing logs", "subscription", m.GetId(), "err", err)
	}
}

// logWatch is a subscription that follows tasks as they come.
type logWatch struct {
	selector *swarmpb.LogSelector

	mu   sync.Mutex
	seen map[string]bool
	add  func(*runner)
}

// offer adds the task to the subscription if it is wanted and not there yet.
func (l *logWatch) offer(r *runner) {
	t, _ := r.snapshot()
	if !selects(l.selector, t) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.seen[r.id] && len(l.seen) < maxFollowed && l.add != nil {
		l.seen[r.id] = true
		l.add(r)
	}
}

func (l *logWatch) stop() {
	l.mu.Lock()
	l.add = nil
	l.mu.Unlock()
}

func selects(s *swarmpb.LogSelector, t *api.Task) bool {
	return slices.Contains(s.GetTaskIds(), t.ID) ||
		t.ServiceID != "" && slices.Contains(s.GetServiceIds(), t.ServiceID) ||
		t.NodeID != "" && slices.Contains(s.GetNodeIds(), t.NodeID)
}

func logOptions(o *swarmpb.LogSubscriptionOptions) exec.LogOptions {
	out := exec.LogOptions{Follow: o.GetFollow(), Tail: -1}
	if o.GetTail() < 0 {
		out.Tail = int(-o.GetTail() - 1)
	}
	if o.GetSince().IsValid() {
		out.Since = o.GetSince().AsTime()
	}
	for _, s := range o.GetStreams() {
		out.Stdout = out.Stdout || s == swarmpb.LogStream_LOG_STREAM_STDOUT
		out.Stderr = out.Stderr || s == swarmpb.LogStream_LOG_STREAM_STDERR
	}
	if !out.Stdout && !out.Stderr {
		out.Stdout, out.Stderr = true, true
	}
	return out
}

// logs sends the logs of the tasks that the subscription selects. Without follow
// they come in order of their time, with follow as they come.
func (w *worker) logs(ctx context.Context, m *swarmpb.SubscriptionMessage, send func([]*swarmpb.LogMessage) error) error {
	options := logOptions(m.GetOptions())
	out := &logBatcher{send: send}
	if options.Follow {
		return w.follow(ctx, m.GetSelector(), options, out)
	}
	w.mu.Lock()
	runners := slices.Collect(maps.Values(w.runners))
	w.mu.Unlock()
	var sources []func(context.Context, func(*swarmpb.LogMessage) error) error
	for _, r := range runners {
		if t, _ := r.snapshot(); selects(m.GetSelector(), t) {
			sources = append(sources, func(ctx context.Context, emit func(*swarmpb.LogMessage) error) error {
				return r.logs(ctx, t, options, emit)
			})
		}
	}
	if err := swarmpb.MergeLogs(ctx, sources, out.put); err != nil {
		return err
	}
	return out.flush()
}

func (w *worker) follow(ctx context.Context, selector *swarmpb.LogSelector, o exec.LogOptions, out *logBatcher) error {
	g, ctx := errgroup.WithContext(ctx)
	lines := make(chan *swarmpb.LogMessage, maxLogLines)
	watch := &logWatch{selector: selector, seen: map[string]bool{}}
	watch.add = func(r *runner) {
		g.Go(func() error {
			t, _ := r.snapshot()
			return r.logs(ctx, t, o, func(m *swarmpb.LogMessage) error {
				select {
				case lines <- m:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}
	w.mu.Lock()
	w.watchers[watch] = struct{}{}
	runners := slices.Collect(maps.Values(w.runners))
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.watchers, watch)
		w.mu.Unlock()
	}()
	g.Go(func() error { defer watch.stop(); return out.drain(ctx, lines) })
	for _, r := range runners {
		watch.offer(r)
	}
	return g.Wait()
}

// logs reads the task's output; with follow it waits for a container first. A
// task without output is no error.
func (r *runner) logs(ctx context.Context, t *api.Task, o exec.LogOptions, emit func(*swarmpb.LogMessage) error) error {
	where := &swarmpb.LogContext{ServiceId: t.ServiceID, NodeId: t.NodeID, TaskId: t.ID}
	if o.Follow {
		select {
		case <-r.prepared:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var sink error
	err := r.controller.Logs(ctx, o, func(m exec.LogMessage) error {
		sink = emit(newLogMessage(where, m))
		return sink
	})
	if sink != nil {
		return sink
	}
	if err != nil && ctx.Err() == nil {
		r.log.Debug("reading the task's logs", "err", err)
	}
	return ctx.Err()
}

func newLogMessage(where *swarmpb.LogContext, m exec.LogMessage) *swarmpb.LogMessage {
	x := &swarmpb.LogMessage{
		Context: where, Timestamp: timestamppb.New(m.At), Data: slices.Clone(m.Data), Stream: swarmpb.LogStream_LOG_STREAM_STDOUT,
	}
	if m.Stream == "stderr" {
		x.Stream = swarmpb.LogStream_LOG_STREAM_STDERR
	}
	for k, v := range m.Attrs {
		x.Attrs = append(x.Attrs, &swarmpb.LogAttr{Key: strings.ToValidUTF8(k, "?"), Value: strings.ToValidUTF8(v, "?")})
	}
	slices.SortFunc(x.Attrs, func(a, b *swarmpb.LogAttr) int { return cmp.Compare(a.Key, b.Key) })
	return x
}

// logBatcher gathers messages so that a line does not cost a message. Not for
// concurrent use.
type logBatcher struct {
	send  func([]*swarmpb.LogMessage) error
	batch []*swarmpb.LogMessage
	size  int
}

func (b *logBatcher) put(m *swarmpb.LogMessage) error {
	b.batch = append(b.batch, m)
	b.size += len(m.GetData())
	if len(b.batch) >= maxLogLines || b.size >= maxLogBatch {
		return b.flush()
	}
	return nil
}

func (b *logBatcher) flush() error {
	if len(b.batch) == 0 {
		return nil
	}
	batch := b.batch
	b.batch, b.size = nil, 0
	return b.send(batch)
}

// drain sends lines as they come until ctx ends: what is there at once goes in
// one message.
func (b *logBatcher) drain(ctx context.Context, lines <-chan *swarmpb.LogMessage) error {
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-lines:
			err = b.put(m)
		}
		for more := true; more && err == nil; {
			select {
			case m := <-lines:
				err = b.put(m)
			default:
				more = false
			}
		}
		if err = first(err, b.flush()); err != nil {
			return err
		}
	}
}
