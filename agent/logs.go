package agent

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	maxSubscriptions = 256
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
				read := s.worker.logs
				if len(open) >= maxSubscriptions {
					read = refuseLogs
				}
				sub, stop := context.WithCancel(ctx)
				open[m.GetId()] = stop
				g.Go(func() error {
					s.publish(sub, m, read)
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

type readLogs func(ctx context.Context, m *swarmpb.SubscriptionMessage, send func([]*swarmpb.LogMessage) error) error

// refuseLogs tells a reader that there are too many.
func refuseLogs(_ context.Context, _ *swarmpb.SubscriptionMessage, send func([]*swarmpb.LogMessage) error) error {
	return send([]*swarmpb.LogMessage{logNote(nil, "too many read logs of this node at once: "+strconv.Itoa(maxSubscriptions))})
}

// logNote says why output is missing: what it is about is no output itself.
func logNote(where *swarmpb.LogContext, why string) *swarmpb.LogMessage {
	return &swarmpb.LogMessage{Context: where, Timestamp: timestamppb.Now(), Data: []byte(why), Stream: swarmpb.LogStream_LOG_STREAM_UNKNOWN}
}

// publish sends the logs of one subscription until they end, or ctx does.
func (s *session) publish(ctx context.Context, m *swarmpb.SubscriptionMessage, read readLogs) {
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
		err = read(ctx, m, send)
	}
	if err == nil {
		err = stream.Send(&swarmpb.PublishLogsMessage{SubscriptionId: m.GetId(), Close: true})
	}
	_, closeErr := stream.CloseAndRecv()
	if err = first(err, closeErr); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		s.cfg.Log.Debug("publishing logs", "subscription", m.GetId(), "err", err)
	}
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
// they come in order of their time. With follow so does what there is, then
// comes a batch of nothing, then what is new as it comes.
func (w *worker) logs(ctx context.Context, m *swarmpb.SubscriptionMessage, send func([]*swarmpb.LogMessage) error) error {
	options := logOptions(m.GetOptions())
	out := &logBatcher{send: send}
	if options.Follow {
		return w.follow(ctx, m.GetSelector(), options, out)
	}
	w.mu.Lock()
	runners := slices.Collect(maps.Values(w.runners))
	w.mu.Unlock()
	var sources []logSource
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

type logSource = func(context.Context, func(*swarmpb.LogMessage) error) error

// logs reads the task's output; with follow it waits for a container first. A
// task without output is no error; that its output can't be read is a note.
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
		return emit(logNote(where, err.Error()))
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
