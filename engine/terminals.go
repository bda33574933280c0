package engine

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	"github.com/legion-swarm/legion/engine/logfile"
)

// terminals connects a container's streams with those who are attached. They
// may attach before there is a process. A reader that is slow holds the
// process up, as a pipe does.
type terminals struct {
	mu    sync.Mutex
	outs  map[*listener]struct{}
	stdin io.WriteCloser
	ready chan struct{} // closed while stdin is set
}

// listener is one attachment. A nil writer is not attached.
type listener struct{ stdout, stderr *io.PipeWriter }

func newTerminals() *terminals {
	return &terminals{outs: make(map[*listener]struct{}), ready: make(chan struct{})}
}

func (t *terminals) attach(l *listener) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.outs[l] = struct{}{}
}

func (t *terminals) detach(l *listener) {
	t.mu.Lock()
	delete(t.outs, l)
	t.mu.Unlock()
	l.close()
}

func (l *listener) close() {
	for _, w := range []*io.PipeWriter{l.stdout, l.stderr} {
		if w != nil {
			_ = w.Close()
		}
	}
}

// write hands output to all attached. It blocks while one does not read.
func (t *terminals) write(stream string, p []byte) {
	t.mu.Lock()
	if len(t.outs) == 0 {
		t.mu.Unlock()
		return
	}
	all := make([]*listener, 0, len(t.outs))
	for l := range t.outs {
		all = append(all, l)
	}
	t.mu.Unlock()
	for _, l := range all {
		w := l.stdout
		if stream == "stderr" {
			w = l.stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(p); err != nil {
			t.detach(l)
		}
	}
}

// open gives those attached the process's standard input.
func (t *terminals) open(stdin io.WriteCloser) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if stdin != nil && t.stdin == nil {
		t.stdin = stdin
		close(t.ready)
	}
}

// close ends all attachments: the process is gone.
func (t *terminals) close() {
	t.mu.Lock()
	all := t.outs
	t.outs = make(map[*listener]struct{})
	stdin := t.stdin
	if stdin != nil {
		t.stdin = nil
		t.ready = make(chan struct{})
	}
	t.mu.Unlock()
	if stdin != nil {
		_ = stdin.Close()
	}
	for l := range all {
		l.close()
	}
}

// input waits for the standard input.
func (t *terminals) input(ctx context.Context, ended <-chan struct{}) (io.WriteCloser, error) {
	for {
		t.mu.Lock()
		w, ready := t.stdin, t.ready
		t.mu.Unlock()
		if w != nil {
			return w, nil
		}
		select {
		case <-ready:
		case <-ended:
			return nil, io.EOF
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

const (
	pumpBuffer = 32 << 10
	maxLine    = 16 << 10 // longer lines are cut, as Docker does
)

// splitter cuts output into lines.
type splitter struct {
	stream string
	rest   []byte
}

// feed returns the messages that are complete with p. They are good until the
// next call.
func (s *splitter) feed(p []byte, at time.Time) []logfile.Message {
	var out []logfile.Message
	b := p
	if len(s.rest) > 0 {
		b = append(s.rest, p...)
	}
	for {
		i := bytes.IndexByte(b[:min(len(b), maxLine+1)], '\n')
		switch {
		case i >= 0:
			out = append(out, logfile.Message{Stream: s.stream, At: at, Line: b[:i]})
			b = b[i+1:]
			continue
		case len(b) > maxLine:
			out = append(out, logfile.Message{Stream: s.stream, At: at, Line: b[:maxLine], Partial: true})
			b = b[maxLine:]
			continue
		}
		break
	}
	// A new array: the messages still point into the old one.
	s.rest = append([]byte(nil), b...)
	return out
}

// flush returns what came after the last newline. It has none of its own, so it
// is a part of a line, as with Docker.
func (s *splitter) flush(at time.Time) []logfile.Message {
	if len(s.rest) == 0 {
		return nil
	}
	m := logfile.Message{Stream: s.stream, At: at, Line: s.rest, Partial: true}
	s.rest = nil
	return []logfile.Message{m}
}

// pump copies one stream of a process until its end.
func (c *ctr) pump(stream string, r io.Reader, log *logfile.Log) {
	s := splitter{stream: stream}
	buf := make([]byte, pumpBuffer)
	failed := false
	put := func(ms []logfile.Message) {
		if err := log.Append(ms...); err != nil && !failed {
			failed = true // say it once: the disk may be full for long
			c.e.cfg.Log.Error("a container's output could not be logged; it is lost until this is mended", "container", c.id, "error", err)
		} else if err == nil {
			failed = false
		}
	}
	for {
		n, err := r.Read(buf)
		if n > 0 {
			put(s.feed(buf[:n], c.e.cfg.Now()))
			c.io.write(stream, buf[:n])
		}
		if err != nil {
			put(s.flush(c.e.cfg.Now()))
			return
		}
	}
}

// startPumps copies a run's output in the background.
func (c *ctr) startPumps(r *run, log *logfile.Log) {
	if r.streams.Stdout != nil {
		r.pumps.Go(func() { c.pump("stdout", r.streams.Stdout, log) })
	}
	if r.streams.Stderr != nil {
		r.pumps.Go(func() { c.pump("stderr", r.streams.Stderr, log) })
	}
	c.io.open(r.streams.Stdin)
	go func() {
		r.pumps.Wait()
		close(r.drained)
	}()
}
