package dockerapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

// lingering is how long a finished hijacked connection waits for the client to
// close its side, so that the last output is not lost to a reset.
const lingering = 2 * time.Second

// hijacked is a connection taken over from HTTP: attach and exec. Its context
// ends when the client hangs up.
type hijacked struct {
	conn   net.Conn
	done   func()
	stdin  *hijackedReader
	ctx    context.Context
	cancel context.CancelFunc
	// release takes back what happens when ctx ends.
	release func() bool
	wg      sync.WaitGroup

	mu     sync.Mutex
	closed bool // no goroutine is started any more
}

// hijack takes the connection over and answers 101 UPGRADED if the client asked
// to upgrade, else 200. A body of a known length that nobody read is no input:
// it is dropped. The caller must call close.
func (c *call) hijack(tty bool) (*hijacked, error) {
	if err := c.dropBody(); err != nil {
		return nil, err
	}
	conn, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return nil, api.Errorf(api.Internal, "the connection can't be taken over for streaming: %w", err)
	}
	upgrade := c.r.Header.Get("Upgrade") != ""
	var b bytes.Buffer
	if upgrade {
		c.w.status = http.StatusSwitchingProtocols
		b.WriteString("HTTP/1.1 101 UPGRADED\r\n")
	} else {
		c.w.status = http.StatusOK
		b.WriteString("HTTP/1.1 200 OK\r\n")
	}
	h := c.w.Header().Clone()
	h.Set("Content-Type", types.MediaTypeRawStream)
	if upgrade && !tty && c.version.from(42) {
		h.Set("Content-Type", types.MediaTypeMultiplexedStream)
	}
	if upgrade {
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "tcp")
	}
	_ = h.Write(&b) // a bytes.Buffer never fails
	b.WriteString("\r\n")

	// The server may have set deadlines; streams have none.
	_ = conn.SetDeadline(time.Time{})
	if _, err := conn.Write(b.Bytes()); err != nil {
		_ = conn.Close()
		return nil, err
	}
	c.s.hijacks.Add(1)
	s := &hijacked{conn: conn, done: c.s.hijacks.Done}
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	// A backend may sit in a read or a write when the end comes.
	s.release = context.AfterFunc(s.ctx, func() {
		now := time.Now()
		_ = conn.SetReadDeadline(now)
		_ = conn.SetWriteDeadline(now.Add(lingering))
	})
	early, _ := rw.Reader.Peek(rw.Reader.Buffered()) // what the client sent right after the request
	s.stdin = &hijackedReader{s: s, early: bytes.Clone(early)}
	return s, nil
}

// ignoreInput reads and drops what the client sends, only to notice its leaving.
func (s *hijacked) ignoreInput() {
	s.start(func() { _, _ = io.Copy(io.Discard, s.stdin) })
}

func (s *hijacked) start(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Go(f)
	}
}

// close tells the client that there is no more output, waits a moment for it
// to leave, and ends everything that hijack and ignoreInput started.
func (s *hijacked) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.release()
	s.cancel()
	if cw, ok := s.conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		_ = s.conn.SetReadDeadline(time.Now().Add(lingering))
		_, _ = io.Copy(io.Discard, s.conn)
	}
	_ = s.conn.Close()
	s.wg.Wait()
	s.done()
}

// hijackedReader reads what the client sends. Its end means that the client
// has no more input, not that it left: from then on a watcher waits for that.
type hijackedReader struct {
	s     *hijacked
	early []byte
	once  sync.Once
}

func (r *hijackedReader) Read(p []byte) (int, error) {
	if len(r.early) > 0 {
		n := copy(p, r.early)
		r.early = r.early[n:]
		return n, nil
	}
	n, err := r.s.conn.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		r.once.Do(func() { r.s.start(r.s.watchHangup) })
	default:
		r.s.cancel()
	}
	return n, err
}

// watchHangup cancels the context once the peer has closed both directions.
// On a unix socket the kernel says so at once; on TCP only when output is
// refused or a keep-alive probe fails.
func (s *hijacked) watchHangup() {
	raw := rawConn(s.conn)
	if raw == nil {
		return
	}
	err := raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(p, 0); err != nil {
			return !errors.Is(err, unix.EINTR)
		}
		return p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
	})
	if err == nil {
		s.cancel()
	}
}

func rawConn(c net.Conn) syscall.RawConn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
