package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/engine"
)

// fifos are the named pipes between a process's shim and us. A path is empty
// when the process has no such stream.
type fifos struct{ stdin, stdout, stderr string }

func fifosIn(dir, prefix string, stdin, terminal bool) fifos {
	f := fifos{stdout: filepath.Join(dir, prefix+"1")}
	if stdin {
		f.stdin = filepath.Join(dir, prefix+"0")
	}
	if !terminal {
		f.stderr = filepath.Join(dir, prefix+"2")
	}
	return f
}

func (f fifos) paths() []string {
	var p []string
	for _, s := range []string{f.stdin, f.stdout, f.stderr} {
		if s != "" {
			p = append(p, s)
		}
	}
	return p
}

func (f fifos) make() error {
	for _, p := range f.paths() {
		if err := unix.Mkfifo(p, 0o600); err != nil {
			return fmt.Errorf("mkfifo %s: %w", p, err)
		}
	}
	return nil
}

func (f fifos) remove() {
	for _, p := range f.paths() {
		_ = os.Remove(p)
	}
}

// readers opens the reading ends. It does not block; but a read before the
// shim opened its ends would see the end of the stream.
func (f fifos) readers() (*engine.Streams, error) {
	s := &engine.Streams{}
	out, err := openReader(f.stdout)
	if err != nil {
		return nil, err
	}
	s.Stdout = out
	if f.stderr != "" {
		e, err := openReader(f.stderr)
		if err != nil {
			return nil, errors.Join(err, out.Close())
		}
		s.Stderr = e
	}
	return s, nil
}

func openReader(path string) (io.ReadCloser, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// stdinPatience is how long a shim may take to open its end of stdin, which it
// does on the side of starting the process.
const stdinPatience = 2 * time.Second

// writer opens the writing end of stdin once the shim has its end open: what
// was written and closed before would be lost. eof tells the shim that there
// is no more.
func (f fifos) writer(ctx context.Context, eof func()) (io.WriteCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, stdinPatience)
	defer cancel()
	for {
		w, err := os.OpenFile(f.stdin, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			return &stdin{File: w, eof: sync.OnceFunc(eof)}, nil
		}
		if !errors.Is(err, unix.ENXIO) {
			return nil, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// stdin is a process's standard input. The shim holds the pipe open on its own,
// so that the end of it must be told apart.
type stdin struct {
	*os.File
	eof func()
}

func (s *stdin) Close() error {
	err := s.File.Close()
	s.eof()
	return err
}

func closeStreams(s *engine.Streams) {
	if s == nil {
		return
	}
	for _, c := range []io.Closer{s.Stdin, s.Stdout, s.Stderr} {
		if c != nil {
			_ = c.Close()
		}
	}
}
