package traffic

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// server says hello, as demo/web.
func server(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s
}

func hello(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "hello from here, version 1, to %s\n", r.RemoteAddr)
}

func TestWeb(t *testing.T) {
	s := server(t, hello)
	r, err := Web{Pace: Pace{Clients: 4, Count: 100}, URLs: []string{s.URL}, Kept: 2}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 100 || r.Failed != 0 || r.Servers["here"] != 100 || r.Clients["127.0.0.1"] != 100 {
		t.Errorf("%v, %v, %v", r, r.Servers, r.Clients)
	}
	if r.Connections >= 100 || r.Connections < 3 {
		t.Errorf("%d connections", r.Connections)
	}
}

// TestFailures: what is lost is seen, and when; what a server is free to do is
// no failure.
func TestFailures(t *testing.T) {
	t.Run("status", func(t *testing.T) {
		s := server(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no redis", http.StatusBadGateway) })
		r, err := Web{Pace: Pace{Count: 1}, URLs: []string{s.URL}}.Run(t.Context())
		if err != nil || r.Failed != 1 || r.Failures[0].Stage != "answer" || !strings.Contains(r.Failures[0].Reason, "no redis") {
			t.Errorf("%v, %v", r, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		var n atomic.Int32
		s := server(t, func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 3 {
				panic(http.ErrAbortHandler)
			}
			hello(w, r)
		})
		r, err := Web{Pace: Pace{Count: 5}, URLs: []string{s.URL}, Kept: 1}.Run(t.Context())
		if err != nil || r.Requests != 5 || r.Failed != 1 || r.Failures[0].Stage != "receive" || r.Failures[0].Nth != 3 || r.Connections != 2 {
			t.Errorf("%v, %v", r, err)
		}
	})
	t.Run("last answer", func(t *testing.T) {
		s := server(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			hello(w, r)
		})
		r, err := Web{Pace: Pace{Count: 5}, URLs: []string{s.URL}, Kept: 1}.Run(t.Context())
		if err != nil || r.Failed != 0 || r.Connections != 5 {
			t.Errorf("%v, %v", r, err)
		}
	})
	t.Run("closed while idle", func(t *testing.T) {
		s := server(t, hello)
		c := &webClient{rec: newRecorder(), timeout: time.Second, keep: true, urls: []*url.URL{must(t, s.URL)}}
		c.request()
		s.CloseClientConnections()
		for !c.closed() { // the kernel has to bring it
			time.Sleep(time.Millisecond)
		}
		c.request()
		if r := c.rec.report(); r.Failed != 0 || r.Connections != 2 || r.Reopened != 1 {
			t.Errorf("%v", r)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		r, err := Web{Pace: Pace{Count: 1}, URLs: []string{"http://" + l.Addr().String()}}.Run(t.Context())
		if err != nil || r.Failed != 1 || r.Failures[0].Stage != "connect" {
			t.Errorf("%v, %v", r, err)
		}
	})
	for _, bad := range []string{"", "x", "https://x", "http://%"} {
		if _, err := (Web{URLs: []string{bad}}).Run(t.Context()); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestPace(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var n atomic.Int32
	Pace{Clients: 3, Rate: 100}.run(ctx, func(_ int, next func() bool) {
		for next() {
			n.Add(1)
		}
	})
	if got := n.Load(); got < 1 || got > 21 {
		t.Errorf("%d requests in 0.2 s at 100 a second", got)
	}
}

func TestServe(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	go func() { ended <- Serve(ctx, address, "me") }()
	for {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	r, err := Datagrams{Pace: Pace{Clients: 2, Count: 20}, Address: address, Kept: 1}.Run(ctx)
	if err != nil || r.Failed != 0 || r.Servers["me"] != 20 || r.Clients["127.0.0.1"] != 20 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err = (Stream{Address: address, Streams: 2, For: 20 * time.Millisecond}).Run(ctx); err != nil || r.Bytes == 0 {
		t.Errorf("%v, %v", r, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// sized notes how much it is asked for at most.
type sized struct{ left, most int }

func (s *sized) Read(b []byte) (int, error) {
	s.most = max(s.most, len(b))
	n := min(s.left, len(b))
	if s.left -= n; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func TestDrain(t *testing.T) {
	s := &sized{left: 1 << 20}
	if n, err := drain(s); err != nil || n != 1<<20 || s.most != block {
		t.Errorf("%d bytes, at most %d at a time, %v", n, s.most, err)
	}
}

// BenchmarkStream is a stream over loopback; its bytes a second are those of both ends.
func BenchmarkStream(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			go sink(c.(*net.TCPConn))
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	b.SetBytes(block)
	for data := make([]byte, block); b.Loop(); {
		if _, err := c.Write(data); err != nil {
			b.Fatal(err)
		}
	}
}

func TestNames(t *testing.T) {
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		for b := make([]byte, maxDatagram); ; {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			answer := append([]byte(nil), b[:n]...)
			answer[offsetAnswers+1] = 1
			if !strings.Contains(string(b[:n]), "\x05tasks\x03web") {
				answer[offsetFlags+1] |= 3 // NXDOMAIN
			}
			_, _ = u.WriteTo(answer, from)
		}
	}()
	for name, failed := range map[string]int{"tasks.web": 0, "other": 10} {
		r, err := Names{Pace: Pace{Clients: 2, Count: 10}, Server: u.LocalAddr().String(), Name: name}.Run(t.Context())
		if err != nil || r.Requests != 10 || r.Failed != failed {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

func TestWho(t *testing.T) {
	for answer, want := range map[string][2]string{
		"hello from a1, version 2, to 10.0.0.1:80\nmore": {"a1", "10.0.0.1"},
		"hello from a1, to [fd00::1]:80\n":               {"a1", "fd00::1"},
		"<html>":                                         {"", ""},
	} {
		if s, c := who([]byte(answer)); s != want[0] || c != want[1] {
			t.Errorf("%q: %q %q", answer, s, c)
		}
	}
}

func must(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
