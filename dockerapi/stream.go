package dockerapi

import (
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/legion-swarm/legion/engine"
)

// flushDelay is how long output of a log may wait for more to go with it.
const flushDelay = 5 * time.Millisecond

// flusher writes to the client and flushes soon after: at once when the last
// flush is long ago, else within flushDelay. Close it; it flushes what is left
// and waits for its timer. Safe for concurrent use.
type flusher struct {
	mu      sync.Mutex
	w       io.Writer
	flush   func()
	last    time.Time
	pending *time.Timer
	closed  bool
}

func (c *call) flusher() *flusher {
	c.flush() // the client learns at once that the stream is there
	return &flusher{w: c.w, flush: c.flush}
}

func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(p)
	if err != nil || f.pending != nil {
		return n, err
	}
	if wait := flushDelay - time.Since(f.last); wait > 0 {
		f.pending = time.AfterFunc(wait, f.late)
		return n, nil
	}
	f.flush()
	f.last = time.Now()
	return n, nil
}

func (f *flusher) late() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.flush()
	f.last, f.pending = time.Now(), nil
}

func (f *flusher) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.pending != nil {
		f.pending.Stop()
	}
	f.flush()
	return nil
}

// progress streams Docker's progress messages. Its first message begins the
// answer: an error before it is still an ordinary one.
type progress struct {
	c  *call
	mu sync.Mutex
	b  *buffer
}

// message is jsonstream.Message with the error's text once more, where clients
// older than the errorDetail field look for it.
type message struct {
	jsonstream.Message
	ErrorText string `json:"error,omitempty"`
}

// progress runs do and streams what it reports.
func (c *call) progress(do func(p engine.Progress) error) error {
	p := &progress{c: c, b: c.s.getBuffer()}
	defer func() { c.s.putBuffer(p.b) }()
	err := do(p.tell)
	if err == nil {
		p.begin()
		return nil
	}
	if c.w.status == 0 {
		return err
	}
	p.send(&message{Message: jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, ErrorText: err.Error()})
	return err
}

func (p *progress) begin() {
	if p.c.w.status == 0 {
		p.c.w.Header().Set("Content-Type", "application/json")
		p.c.w.WriteHeader(http.StatusOK)
	}
}

func (p *progress) tell(m jsonstream.Message) {
	out := message{Message: m}
	if m.Error != nil {
		out.ErrorText = m.Error.Message
	}
	p.send(&out)
}

func (p *progress) send(m *message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.b.Reset()
	if err := p.b.encode(m); err != nil {
		p.c.log.Error("encode a progress message", "error", err)
		return
	}
	p.begin()
	_, _ = p.c.w.Write(p.b.Bytes()) // a client that left ends the request's context
	p.c.flush()
}

// lazyWriter begins a 200 answer of the given type with its first byte.
type lazyWriter struct {
	c           *call
	contentType string
}

func (l lazyWriter) Write(p []byte) (int, error) {
	if l.c.w.status == 0 {
		l.c.w.Header().Set("Content-Type", l.contentType)
		l.c.w.WriteHeader(http.StatusOK)
	}
	return l.c.w.Write(p)
}

// cut ends an answer that failed after it had begun: the client must see a
// broken transfer, not a short one that looks whole.
func (c *call) cut(err error) error {
	if err == nil || c.w.status == 0 {
		return err
	}
	c.log.Warn("api answer cut short", "path", c.r.URL.Path, "error", err)
	panic(http.ErrAbortHandler)
}
