package engine

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/legion-swarm/legion/api"
)

const (
	eventsKept  = 512  // for since
	eventsQueue = 4096 // that a reader may be behind
)

// bus hands events to who listens, and keeps the last ones.
type bus struct {
	mu     sync.Mutex
	kept   []events.Message // a ring once full
	next   int
	subs   map[*subscription]struct{}
	closed bool
	last   int64

	now func() time.Time
}

type subscription struct {
	ch   chan events.Message
	lost bool // guarded by bus.mu: the reader was too slow; ch is closed
}

func newBus(now func() time.Time) *bus {
	return &bus{subs: make(map[*subscription]struct{}), now: now}
}

func (b *bus) publish(m events.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := max(b.now().UnixNano(), b.last+1) // since and until tell them apart
	b.last = at
	m.Time, m.TimeNano = at/int64(time.Second), at
	if m.Scope == "" {
		m.Scope = "local"
	}
	if len(b.kept) < eventsKept {
		b.kept = append(b.kept, m)
	} else {
		b.kept[b.next] = m
		b.next = (b.next + 1) % eventsKept
	}
	for s := range b.subs {
		select {
		case s.ch <- m:
		default:
			s.lost = true
			close(s.ch)
			delete(b.subs, s)
		}
	}
}

// subscribe returns the events kept, oldest first, and those to come.
func (b *bus) subscribe() ([]events.Message, *subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	past := slices.Concat(b.kept[b.next:], b.kept[:b.next])
	s := &subscription{ch: make(chan events.Message, eventsQueue)}
	if b.closed {
		close(s.ch)
	} else {
		b.subs[s] = struct{}{}
	}
	return past, s
}

func (b *bus) unsubscribe(s *subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.subs, s)
}

func (b *bus) isLost(s *subscription) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return s.lost
}

func (b *bus) listeners() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs)
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		close(s.ch)
		delete(b.subs, s)
	}
}

// Emit publishes an event that happened outside of the engine, as to a
// network or to the daemon itself.
func (e *Engine) Emit(kind events.Type, action events.Action, id string, attributes map[string]string) {
	e.events.publish(events.Message{Type: kind, Action: action, Actor: events.Actor{ID: id, Attributes: attributes}})
}

// Publish adds an event of another part of the node, as it is, so that one
// stream has all.
func (e *Engine) Publish(m events.Message) { e.events.publish(m) }

// Listeners tells how many readers of events there are.
func (e *Engine) Listeners() int { return e.events.listeners() }

// event publishes what happened to a container.
func (c *ctr) event(action events.Action, more map[string]string) {
	r := c.snapshot()
	a := make(map[string]string, len(r.Config.Labels)+2+len(more))
	maps.Copy(a, r.Config.Labels)
	a["name"] = r.Name
	if r.ImageName != "" {
		a["image"] = r.ImageName
	}
	maps.Copy(a, more)
	c.e.Emit(events.ContainerEventType, action, c.id, a)
}

// Events calls fn for past events from o.Since on, and for coming ones until
// o.Until or the end of ctx. A reader that is too slow is cut off with
// ResourceExhausted.
func (e *Engine) Events(ctx context.Context, o EventsOptions, fn func(events.Message) error) error {
	past, sub := e.events.subscribe()
	defer e.events.unsubscribe(sub)
	if !o.Since.IsZero() {
		for _, m := range past {
			at := time.Unix(0, m.TimeNano)
			if at.Before(o.Since) || !o.Until.IsZero() && at.After(o.Until) || !wanted(&m, o.Filters) {
				continue
			}
			if err := fn(m); err != nil {
				return err
			}
		}
	}
	var until <-chan time.Time
	if !o.Until.IsZero() {
		left := o.Until.Sub(e.cfg.Now())
		if left <= 0 {
			return nil
		}
		t := time.NewTimer(left)
		defer t.Stop()
		until = t.C
	}
	for {
		select {
		case m, ok := <-sub.ch:
			if !ok {
				if e.events.isLost(sub) {
					return api.Errorf(api.ResourceExhausted, "the reader of events is more than %d events behind; read faster and ask again with since", eventsQueue)
				}
				return nil
			}
			if wanted(&m, o.Filters) {
				if err := fn(m); err != nil {
					return err
				}
			}
		case <-until:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wanted reports whether an event passes the filters of GET /events.
func wanted(m *events.Message, f api.Filters) bool {
	a := m.Actor.Attributes
	has := func(key string, ok func(v string) bool) bool {
		values, set := f[key]
		return !set || len(values) == 0 || slices.ContainsFunc(values, ok)
	}
	// Whatever the filter's name, as with Docker: service=web lets the events of
	// web's tasks through, as their names begin so.
	actor := func(v string) bool {
		return v != "" && (strings.HasPrefix(m.Actor.ID, v) || strings.HasPrefix(a["name"], v))
	}
	if !has("event", func(v string) bool {
		action := string(m.Action)
		return v == action || strings.HasPrefix(action, v+":") || strings.HasPrefix(action, v+" ")
	}) || !has("type", func(v string) bool { return v == string(m.Type) }) || !has("scope", func(v string) bool { return v == m.Scope }) {
		return false
	}
	for _, l := range f["label"] {
		k, v, valued := strings.Cut(l, "=")
		if got, ok := a[k]; !ok || valued && got != v {
			return false
		}
	}
	for _, key := range []string{"container", "volume", "network", "daemon", "plugin", "service", "node", "secret", "config"} {
		if !has(key, actor) {
			return false
		}
	}
	return has("image", func(v string) bool {
		if m.Type == events.ImageEventType && (v == m.Actor.ID || withoutTag(v) == withoutTag(m.Actor.ID)) {
			return true
		}
		return v == a["name"] && m.Type == events.ImageEventType || a["image"] != "" && (v == a["image"] || v == withoutTag(a["image"]))
	})
}

func withoutTag(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return ref
}
