package dispatcher

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// followWindow is how long followed lines are held to put them in order.
	followWindow = 20 * time.Millisecond
	maxHeld      = 2000
	maxHeldBytes = 1 << 20
	// noteInterval is how often it is looked whether there is a note to tell.
	noteInterval = time.Second
)

// errCaughtUp ends the reading of what there was.
var errCaughtUp = errors.New("all that there was was read")

// follow reads what is there and what comes, from nodes that have tasks now and
// from those that get some, until ctx ends.
func (s *subscription) follow(ctx context.Context, fn func(LogMessage) error) error {
	present, err := s.past(ctx, fn)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	lines := make(chan *swarmpb.LogMessage)
	read := func(f *feed) {
		g.Go(func() error {
			return s.pass(ctx, f, 0, func(m *swarmpb.LogMessage) error {
				if m == nil {
					return nil
				}
				select {
				case lines <- m:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}
	for _, f := range present {
		read(f)
	}
	s.mu.Lock()
	s.added = read
	s.mu.Unlock()
	g.Go(func() error { return s.watchTasks(ctx, read) })
	g.Go(func() error {
		defer func() {
			s.mu.Lock()
			s.added = nil
			s.mu.Unlock()
		}()
		return s.drain(ctx, lines, fn)
	})
	return g.Wait()
}

// past reads what there is, in order of time. A node that takes too long is not
// waited for. It returns what is to be read on.
func (s *subscription) past(ctx context.Context, fn func(LogMessage) error) ([]*feed, error) {
	var present []*feed
	for _, node := range s.nodesOf(s.b.store.View()) {
		if f := s.ask(node); f != nil {
			present = append(present, f)
		}
	}
	if s.options.only != "" && len(present) == 0 {
		return nil, s.incomplete()
	}
	var sources []func(context.Context, func(*swarmpb.LogMessage) error) error
	for _, f := range present {
		sources = append(sources, func(ctx context.Context, emit func(*swarmpb.LogMessage) error) error {
			err := s.pass(ctx, f, historyPatience, func(m *swarmpb.LogMessage) error {
				if m == nil {
					return errCaughtUp
				}
				return emit(m)
			})
			if errors.Is(err, errCaughtUp) || errors.Is(err, errSlow) {
				return nil
			}
			return err
		})
	}
	if err := swarmpb.MergeLogs(ctx, sources, func(m *swarmpb.LogMessage) error { return fn(apiLog(m)) }); err != nil {
		return nil, err
	}
	if s.options.caughtUp != nil {
		if err := s.options.caughtUp(); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(present, (*feed).finished), nil
}

// watchTasks asks the nodes that have tasks of the subscription, and those that
// get some.
func (s *subscription) watchTasks(ctx context.Context, read func(*feed)) error {
	for {
		view, w := s.b.store.Watch(store.KindTask)
		for _, node := range s.nodesOf(view) {
			if f := s.ask(node); f != nil {
				read(f)
			}
		}
		err := s.watchFrom(ctx, w, read)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (s *subscription) watchFrom(ctx context.Context, w *store.Watcher, read func(*feed)) error {
	for {
		changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes {
			t := object[api.Task](c.New)
			if t == nil || api.Final(t.Status.State) || !s.selects(t) {
				continue
			}
			if f := s.ask(t.NodeID); f != nil {
				read(f)
			}
		}
	}
}

// back asks a node again that was lost and has come back: for what came after
// that.
func (s *subscription) back(node string) {
	s.mu.Lock()
	_, lost := s.missing[node]
	f := s.feeds[node]
	added := s.added
	s.mu.Unlock()
	if added == nil || !lost && f == nil {
		return
	}
	if f := s.ask(node); f != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.added != nil {
			s.added(f)
		}
	}
}

// drain passes lines on, those that come close to each other in order of time,
// and notes.
func (s *subscription) drain(ctx context.Context, lines <-chan *swarmpb.LogMessage, fn func(LogMessage) error) error {
	window := time.NewTimer(followWindow)
	defer window.Stop()
	look := time.NewTicker(noteInterval)
	defer look.Stop()
	for {
		var held []LogMessage
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-look.C:
			held = s.told(now)
		case m := <-lines:
			held = gather(ctx, m, lines, window)
		}
		for _, m := range held {
			if err := fn(m); err != nil {
				return err
			}
		}
	}
}

// gather returns the line and those that come in the window after it, in order of
// time.
func gather(ctx context.Context, m *swarmpb.LogMessage, lines <-chan *swarmpb.LogMessage, window *time.Timer) []LogMessage {
	held, size := []LogMessage{apiLog(m)}, len(m.GetData())
	window.Reset(followWindow)
	for open := true; open && len(held) < maxHeld && size < maxHeldBytes; {
		select {
		case m := <-lines:
			held, size = append(held, apiLog(m)), size+len(m.GetData())
		case <-window.C:
			open = false
		case <-ctx.Done():
			open = false
		}
	}
	slices.SortStableFunc(held, func(a, b LogMessage) int { return a.At.Compare(b.At) })
	return held
}

func apiLog(m *swarmpb.LogMessage) LogMessage {
	out := LogMessage{
		ServiceID: m.GetContext().GetServiceId(), NodeID: m.GetContext().GetNodeId(), TaskID: m.GetContext().GetTaskId(),
		Stream: "stdout", Data: m.GetData(),
	}
	if m.GetTimestamp().IsValid() {
		out.At = m.GetTimestamp().AsTime()
	}
	switch m.GetStream() {
	case swarmpb.LogStream_LOG_STREAM_STDERR:
		out.Stream = "stderr"
	case swarmpb.LogStream_LOG_STREAM_UNKNOWN:
		out.Note = true
	case swarmpb.LogStream_LOG_STREAM_STDOUT:
	}
	for _, a := range m.GetAttrs() {
		if out.Attrs == nil {
			out.Attrs = map[string]string{}
		}
		out.Attrs[a.GetKey()] = a.GetValue()
	}
	return out
}

func (l LogSelector) wire() *swarmpb.LogSelector {
	return &swarmpb.LogSelector{ServiceIds: l.ServiceIDs, NodeIds: l.NodeIDs, TaskIds: l.TaskIDs}
}

// wireOptions returns the options as they go to a node. A node that is asked
// again is asked for everything since.
func (s *subscription) wireOptions(since time.Time) *swarmpb.LogSubscriptionOptions {
	o := s.options
	m := &swarmpb.LogSubscriptionOptions{Follow: o.Follow}
	if o.Tail >= 0 && since.Equal(o.Since) {
		m.Tail = -int64(o.Tail) - 1
	}
	if !since.IsZero() {
		m.Since = timestamppb.New(since)
	}
	if o.Stdout {
		m.Streams = append(m.Streams, swarmpb.LogStream_LOG_STREAM_STDOUT)
	}
	if o.Stderr {
		m.Streams = append(m.Streams, swarmpb.LogStream_LOG_STREAM_STDERR)
	}
	return m
}
