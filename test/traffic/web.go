package traffic

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// Web is a load of HTTP requests.
type Web struct {
	Pace
	// URLs are asked at random, one for each connection.
	URLs []string
	// Kept is how many of the clients keep their connection from one request to
	// the next; the others make a new one for each.
	Kept int
}

const maxAnswer = 1 << 20

// Run sends requests until ctx is done or all are.
func (w Web) Run(ctx context.Context) (*Report, error) {
	urls, err := w.parse()
	if err != nil {
		return nil, err
	}
	rec := newRecorder()
	w.run(ctx, func(n int, next func() bool) {
		c := &webClient{urls: urls, rec: rec, timeout: w.timeout(), keep: n < w.Kept}
		defer c.drop()
		for next() {
			c.request()
		}
	})
	return rec.report(), nil
}

func (w Web) parse() ([]*url.URL, error) {
	var urls []*url.URL
	for _, text := range w.URLs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		if u.Scheme != "http" || u.Host == "" {
			return nil, fmt.Errorf("%q is no http URL", text)
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), "80")
		}
		urls = append(urls, u)
	}
	if len(urls) == 0 {
		return nil, errors.New("no URL")
	}
	return urls, nil
}

// webClient has at most one connection.
type webClient struct {
	urls    []*url.URL
	rec     *recorder
	timeout time.Duration
	keep    bool

	url   *url.URL // of the connection
	conn  *net.TCPConn
	in    *bufio.Reader
	local string
	nth   int
}

func (c *webClient) request() {
	start := time.Now()
	again := c.conn != nil && c.closed()
	if again {
		c.drop()
	}
	if c.conn == nil {
		if err := c.connect(again); err != nil {
			c.fail("connect", err)
			return
		}
	}
	c.nth++
	if err := c.send(); err != nil {
		c.fail("send", err)
		return
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.fail("receive", err)
		return
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		c.fail("receive", err)
		return
	}
	if resp.StatusCode != http.StatusOK {
		c.fail("answer", fmt.Errorf("%s: %.200s", resp.Status, body))
		return
	}
	server, client := who(body)
	c.rec.done(start, server, client)
	if resp.Close || !c.keep {
		c.drop()
	}
}

func (c *webClient) connect(again bool) error {
	c.url = c.urls[rand.IntN(len(c.urls))]
	conn, err := net.DialTimeout("tcp", c.url.Host, c.timeout)
	if err != nil {
		return err
	}
	c.conn, c.in, c.local, c.nth = conn.(*net.TCPConn), bufio.NewReader(conn), conn.LocalAddr().String(), 0
	c.rec.connected(again)
	return nil
}

func (c *webClient) send() error {
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	word := "close"
	if c.keep {
		word = "keep-alive"
	}
	_, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", c.url.RequestURI(), c.url.Host, word)
	return err
}

// closed reports whether the server is known to have closed the connection, as
// every client looks before it sends again. A close that crosses the request is
// a failure.
func (c *webClient) closed() bool {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = n == 0 && err == nil || err != nil && !errors.Is(err, syscall.EAGAIN)
		return true
	})
	return closed || err != nil
}

func (c *webClient) fail(stage string, err error) {
	c.rec.failed(Failure{At: time.Now(), Stage: stage, Nth: max(c.nth, 1), Local: c.local, Reason: err.Error()})
	c.drop()
}

// drop closes the connection. A short one is reset, since the client can't have
// ports of thousands a second wait.
func (c *webClient) drop() {
	if c.conn == nil {
		return
	}
	if !c.keep {
		_ = c.conn.SetLinger(0)
	}
	_ = c.conn.Close()
	c.conn, c.in, c.local = nil, nil, ""
}
