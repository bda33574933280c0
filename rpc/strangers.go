package rpc

import (
	"net"
	"sync"
	"time"

	"github.com/legion-swarm/legion/api"
)

// Limits on callers without certificate: anybody who reaches the port. What they
// may call (joining, and asking for what is public) takes seconds and a few KiB.
const (
	maxStrangers         = 1024 // connections
	maxStrangersFromHost = 256  // of them from one address
	maxStrangerSends     = 256 << 10
	strangerTime         = 2 * time.Minute // then the connection is closed
)

// strangers counts the connections of callers without certificate. Safe for
// concurrent use; the zero value is ready.
type strangers struct {
	mu    sync.Mutex
	count int
	from  map[string]int // by address without port
}

// admit bounds a stranger's connection, or says why it can't be served. The
// connection that it returns is to be closed in place of the other one.
func (s *strangers) admit(conn net.Conn) (net.Conn, error) {
	host := hostOf(conn.RemoteAddr())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count >= maxStrangers || s.from[host] >= maxStrangersFromHost {
		return nil, api.Errorf(api.ResourceExhausted, "%d connections without certificate, %d of them from %s: no more are served", s.count, s.from[host], host)
	}
	if s.from == nil {
		s.from = map[string]int{}
	}
	s.count++
	s.from[host]++
	c := &strangerConn{Conn: conn, left: maxStrangerSends, host: host, among: s}
	c.timer = time.AfterFunc(strangerTime, func() { _ = c.Close() })
	return c, nil
}

func (s *strangers) leave(c *strangerConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.timer.Stop()
	s.count--
	if s.from[c.host]--; s.from[c.host] == 0 {
		delete(s.from, c.host)
	}
}

func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// strangerConn is a stranger's connection: so much can be read from it.
type strangerConn struct {
	net.Conn
	left  int // one goroutine reads
	host  string
	among *strangers
	timer *time.Timer // guarded by among.mu
	once  sync.Once
}

func (c *strangerConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, api.Errorf(api.ResourceExhausted, "a caller without certificate has sent %d bytes", maxStrangerSends)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (c *strangerConn) Close() error {
	c.once.Do(func() { c.among.leave(c) })
	return c.Conn.Close()
}
