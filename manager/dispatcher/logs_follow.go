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

// follow reads what is there and what comes, from nodes that have tasks now and
// from those that get some, until ctx ends.
func (s *subscription) follow(ctx context.Context, fn func(LogMessage) error) error {
	g, ctx := errgroup.WithContext(ctx)
	lines := make(chan *swarmpb.LogMessage)
	read := func(f *feed) {
		g.Go(func() error {
			return s.pass(ctx, f, func(m *swarmpb.LogMessage) error {
				select {
				case lines <- m:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
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
		return drain(ctx, lines, fn)
	})
	return g.Wait()
}

// watchTasks asks the nodes that have tasks of the subscription, and those that
// get some.
func (s *subscription) watchTasks(ctx context.Context, read func(*feed)) error {
	since := s.options.Since
	for {
		view, w := s.b.store.Watch(store.KindTask)
		for _, node := range s.nodesOf(view) {
			if f := s.ask(node, since); f != nil {
				read(f)
			}
		}
		err := s.watchFrom(ctx, w, since, read)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (s *subscription) watchFrom(ctx context.Context, w *store.Watcher, since time.Time, read func(*feed)) error {
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
			if f := s.ask(t.NodeID, since); f != nil {
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
	delete(s.missing, node)
	s.mu.Unlock()
	if added == nil || !lost && f == nil {
		return
	}
	since := s.options.Since
	if f != nil {
		f.mu.Lock()
		if !f.last.IsZero() {
			since = f.last.Add(1)
		}
		f.mu.Unlock()
	}
	if f := s.ask(node, since); f != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.added != nil {
			s.added(f)
		}
	}
}

// drain passes lines on, those that come close to each other in order of time.
func drain(ctx context.Context, lines <-chan *swarmpb.LogMessage, fn func(LogMessage) error) error {
	window := time.NewTimer(followWindow)
	defer window.Stop()
	for {
		var held []LogMessage
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-lines:
			held = append(held, apiLog(m))
		}
		window.Reset(followWindow)
		for open := true; open && len(held) < maxHeld; {
			select {
			case m := <-lines:
				held = append(held, apiLog(m))
			case <-window.C:
				open = false
			case <-ctx.Done():
				open = false
			}
		}
		slices.SortStableFunc(held, func(a, b LogMessage) int { return a.At.Compare(b.At) })
		for _, m := range held {
			if err := fn(m); err != nil {
				return err
			}
		}
	}
}

func apiLog(m *swarmpb.LogMessage) LogMessage {
	out := LogMessage{
		ServiceID: m.GetContext().GetServiceId(), NodeID: m.GetContext().GetNodeId(), TaskID: m.GetContext().GetTaskId(),
		Stream: "stdout", Data: m.GetData(),
	}
	if m.GetTimestamp().IsValid() {
		out.At = m.GetTimestamp().AsTime()
	}
	if m.GetStream() == swarmpb.LogStream_LOG_STREAM_STDERR {
		out.Stream = "stderr"
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
