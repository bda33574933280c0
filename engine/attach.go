package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/events"

	"github.com/legion-swarm/legion/api"
)

// ErrDetached tells that the user typed the detach keys: the process runs on.
var ErrDetached = errors.New("detached from container")

const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads keys such as "ctrl-p,ctrl-q" or "a,b".
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		s = defaultDetachKeys
	}
	var keys []byte
	for k := range strings.SplitSeq(s, ",") {
		switch {
		case len(k) == 1:
			keys = append(keys, k[0])
			continue
		case k == "DEL":
			keys = append(keys, 127)
			continue
		}
		c, ok := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		if !ok || len(c) != 1 || !strings.Contains("abcdefghijklmnopqrstuvwxyz@[\\]^_", c) {
			return nil, api.Errorf(api.Invalid, "Invalid detach keys (%s) provided: Unknown character: %q", s, k)
		}
		keys = append(keys, strings.ToUpper(c)[0]&0x1f)
	}
	return keys, nil
}

// escapes passes on what it reads until the keys come.
type escapes struct {
	r    io.Reader
	keys []byte
	seen int    // how many of the keys came last
	held []byte // keys that turned out to be input
}

func (e *escapes) Read(p []byte) (int, error) {
	if len(e.held) > 0 {
		n := copy(p, e.held)
		e.held = e.held[n:]
		return n, nil
	}
	buf := make([]byte, len(p))
	n, err := e.r.Read(buf)
	var out []byte
	for _, b := range buf[:n] {
		if b == e.keys[e.seen] {
			if e.seen++; e.seen == len(e.keys) {
				e.seen = 0
				return copy(p, out), ErrDetached
			}
			continue
		}
		out = append(out, e.keys[:e.seen]...)
		e.seen = 0
		if b == e.keys[0] {
			e.seen = 1
			continue
		}
		out = append(out, b)
	}
	k := copy(p, out)
	e.held = bytes.Clone(out[k:])
	return k, err
}

// ContainerAttach connects streams with a container until it ends, the client
// leaves (ctx), or the detach keys come (ErrDetached). The container need not
// run yet.
func (e *Engine) ContainerAttach(ctx context.Context, name string, o AttachOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	r := c.snapshot()
	switch {
	case r.Paused:
		return api.Errorf(api.Conflict, "container %s is paused, unpause the container before attach", name)
	case r.Restarting:
		return api.Errorf(api.Conflict, "container %s is restarting, wait until the container is running", name)
	}
	keys, err := parseDetachKeys(o.DetachKeys)
	if err != nil {
		return err
	}
	if o.Logs {
		if err := c.replay(ctx, &o); err != nil {
			return err
		}
	}
	if !o.Stream {
		return nil
	}
	if r.Phase == phaseExited && r.status() != "created" {
		return nil
	}
	c.event(events.ActionAttach, nil)
	if !r.Config.Tty {
		keys = nil
	}
	err = c.io.join(&o).serve(ctx, keys, r.Config.StdinOnce && !r.Config.Tty)
	if errors.Is(err, ErrDetached) || ctx.Err() != nil {
		c.event(events.ActionDetach, nil)
	}
	return err
}

// replay writes what was logged so far.
func (c *ctr) replay(ctx context.Context, o *AttachOptions) error {
	err := c.logs(ctx, LogsOptions{Stdout: o.Stdout != nil, Stderr: o.Stderr != nil, Tail: -1}, func(m LogMessage) error {
		w := o.Stdout
		if m.Source == "stderr" {
			w = o.Stderr
		}
		_, err := w.Write(m.Line)
		return err
	})
	if api.Is(err, api.Invalid) || api.Is(err, api.Unimplemented) {
		return nil // no stream, or a driver that can't be read
	}
	return err
}

// attachment is a client's streams, connected with a process's.
type attachment struct {
	t     *terminals
	l     *listener
	o     *AttachOptions
	ended chan struct{} // closed when all output was written
}

// join connects outputs. From here on the process's writes wait for them; the
// caller calls serve.
func (t *terminals) join(o *AttachOptions) *attachment {
	a := &attachment{t: t, l: &listener{}, o: o, ended: make(chan struct{})}
	var outputs sync.WaitGroup
	forward := func(to io.Writer) *io.PipeWriter {
		if to == nil {
			return nil
		}
		pr, pw := io.Pipe()
		outputs.Go(func() {
			_, err := io.Copy(to, pr)
			_ = pr.CloseWithError(err)
		})
		return pw
	}
	a.l.stdout, a.l.stderr = forward(o.Stdout), forward(o.Stderr)
	t.attach(a.l)
	go func() {
		outputs.Wait()
		close(a.ended)
	}()
	return a
}

// serve returns when the output ends, ctx does, or the detach keys come. keys
// is nil where they have no meaning; closeStdin tells to end the process's
// input with the client's.
func (a *attachment) serve(ctx context.Context, keys []byte, closeStdin bool) error {
	var input chan error
	if a.o.Stdin != nil {
		input = make(chan error, 1)
		go func() { input <- a.t.feed(ctx, a.o.Stdin, keys, closeStdin, a.ended) }()
	}
	hasOutput := a.l.stdout != nil || a.l.stderr != nil
	var done <-chan struct{} = a.ended
	if !hasOutput {
		done = nil
	}
	var err error
	for err == nil {
		select {
		case <-done:
			return nil
		case err = <-input:
			if err == nil && !hasOutput {
				a.t.detach(a.l)
				return nil
			}
			input = nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	a.t.detach(a.l)
	<-a.ended
	return err
}

// feed copies the client's input to the process. Only ErrDetached matters to
// the attachment: without input the output goes on.
func (t *terminals) feed(ctx context.Context, from io.Reader, keys []byte, closeStdin bool, ended <-chan struct{}) error {
	w, err := t.input(ctx, ended)
	if err != nil {
		return nil //nolint:nilerr // the process ended, or has no input
	}
	if len(keys) > 0 {
		from = &escapes{r: from, keys: keys}
	}
	_, err = io.Copy(w, from)
	if errors.Is(err, ErrDetached) {
		return err
	}
	if closeStdin {
		t.closeInput(w)
	}
	return nil
}

// closeInput tells the process that there is no more.
func (t *terminals) closeInput(w io.WriteCloser) {
	t.mu.Lock()
	if t.stdin == w {
		t.stdin = nil
		t.ready = make(chan struct{})
	}
	t.mu.Unlock()
	_ = w.Close()
}

// ContainerResize sets the size of a container's terminal.
func (e *Engine) ContainerResize(ctx context.Context, name string, width, height uint32) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if _, err := c.running(); err != nil {
		return err
	}
	if err := e.cfg.Runtime.Resize(ctx, c.id, "", width, height); err != nil {
		return err
	}
	c.event(events.ActionResize, map[string]string{"height": utoa(height), "width": utoa(width)})
	return nil
}
