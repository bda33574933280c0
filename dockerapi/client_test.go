package dockerapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func dial(t *testing.T, path string, o ...client.Opt) *client.Client {
	t.Helper()
	c, err := client.New(append([]client.Opt{client.WithHost("unix://" + path)}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// soon fails the test when the channel does not deliver in ten seconds.
func soon[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}

func TestAttach(t *testing.T) {
	for _, tty := range []bool{false, true} {
		f := newFake()
		f.tty = tty
		c := dial(t, serve(t, newServer(t, f)))
		a, err := c.ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true, DetachKeys: "ctrl-x"})
		if err != nil {
			t.Fatal(err)
		}
		media, _ := a.MediaType()
		want := types.MediaTypeMultiplexedStream
		if tty {
			want = types.MediaTypeRawStream
		}
		if media != want {
			t.Errorf("media type %s, want %s", media, want)
		}
		big := strings.Repeat("abc", 100_000)
		go func() {
			_, _ = io.WriteString(a.Conn, big)
			_ = a.CloseWrite()
		}()
		var stdout, stderr bytes.Buffer
		if tty {
			_, err = io.Copy(&stdout, a.Reader)
		} else {
			_, err = stdcopy.StdCopy(&stdout, &stderr, a.Reader)
		}
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		got := stdout.String()
		if tty {
			got = strings.TrimPrefix(got, "hello\n")
		} else if stderr.String() != "hello\n" {
			t.Errorf("standard error %q", stderr.String())
		}
		if got != strings.ToUpper(big) {
			t.Errorf("%d bytes back, want %d", len(got), len(big))
		}
		if err := soon(t, f.attached, "the attachment's end"); err != nil {
			t.Error(err)
		}
		if call := f.took()[1]; call != "ContainerAttach(web, true, true, true, false, ctrl-x)" {
			t.Error(call)
		}
	}
}

// A client that hangs up ends the backend's work: while it sends nothing, and
// after it has closed its input.
func TestHangupEndsAttachment(t *testing.T) {
	for _, closeFirst := range []bool{false, true} {
		f := newFake()
		path := serve(t, newServer(t, f))
		c := dial(t, path)
		a, err := c.ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a.Reader, make([]byte, 14)); err != nil { // the greeting: it is attached
			t.Fatal(err)
		}
		if closeFirst {
			if err := a.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			// The connection is still served: half-closed is not gone.
			if _, err := c.Ping(t.Context(), client.PingOptions{}); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-f.attached:
				t.Fatalf("a half-closed connection ended the attachment: %v", err)
			default:
			}
		}
		a.Close()
		if err := soon(t, f.attached, "the attachment's end"); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
}

func TestAttachRefused(t *testing.T) {
	c := dial(t, serve(t, newServer(t, newFake())))
	_, err := c.ContainerAttach(t.Context(), "nope", client.ContainerAttachOptions{Stream: true})
	if err == nil || !strings.Contains(err.Error(), "received 404") {
		t.Error(err)
	}
}

// Without an Upgrade header the answer is 200 and a raw stream.
func TestAttachWithoutUpgrade(t *testing.T) {
	f := newFake()
	conn, err := net.Dial("unix", serve(t, newServer(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "POST /containers/web/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\nearly")
	_ = conn.(*net.UnixConn).CloseWrite()
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(all), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") || !strings.Contains(head, "application/vnd.docker.raw-stream") || !strings.Contains(head, "Api-Version: 1.56") {
		t.Errorf("head %s", head)
	}
	if body != "\x01\x00\x00\x00\x00\x00\x00\x05EARLY" {
		t.Errorf("body %q", body)
	}
}

// A body is not input, whether it comes with the head or after it; what follows
// it is.
func TestAttachDropsBody(t *testing.T) {
	for _, late := range []bool{false, true} {
		f := newFake()
		conn, err := net.Dial("unix", serve(t, newServer(t, f)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		head := "POST /containers/web/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n" +
			"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
		body := `{"stream":true}`
		if late {
			_, _ = io.WriteString(conn, head+"{")
			_, _ = io.WriteString(conn, body[1:]+"early")
		} else {
			_, _ = io.WriteString(conn, head+body+"early")
		}
		_ = conn.(*net.UnixConn).CloseWrite()
		all, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_, answer, _ := bytes.Cut(all, []byte("\r\n\r\n"))
		if _, err := stdcopy.StdCopy(&out, io.Discard, bytes.NewReader(answer)); err != nil || out.String() != "EARLY" {
			t.Errorf("%q, %v", out.String(), err)
		}
	}
}

// A body that is larger than any may be, or that does not come, is no attachment.
func TestAttachRefusesBody(t *testing.T) {
	f := newFake()
	s := newServer(t, f)
	s.MaxBody = 3
	conn, err := net.Dial("unix", serve(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "POST /containers/web/attach?stream=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 4\r\n\r\n{  }")
	all, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 413 ") || !strings.Contains(string(all), "the request's body is larger than 3 bytes") {
		t.Errorf("%s, %v", all, err)
	}
}

func TestExec(t *testing.T) {
	f := newFake()
	f.exitCode = 3
	c := dial(t, serve(t, newServer(t, f)))
	e, err := c.ExecCreate(t.Context(), "web", client.ExecCreateOptions{Cmd: []string{"ls"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.ExecAttach(t.Context(), e.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, io.Discard, a.Reader); err != nil || out.String() != "exec output\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	r, err := c.ExecInspect(t.Context(), e.ID, client.ExecInspectOptions{})
	if err != nil || r.ExitCode != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

// The headers of a wait come before the container ends, or docker run hangs.
func TestWait(t *testing.T) {
	f := newFake()
	f.exitCode = 7
	c := dial(t, serve(t, newServer(t, f)))
	w := c.ContainerWait(t.Context(), "web", client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := c.ContainerStart(t.Context(), "web", client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if r := soon(t, w.Result, "the wait's end"); r.StatusCode != 7 {
		t.Errorf("%+v", r)
	}
}

func TestEventsFormats(t *testing.T) {
	path := serve(t, newServer(t, newFake()))
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer hc.CloseIdleConnections()
	for accept, want := range map[string]string{
		"": "application/json", "application/json-seq": "application/json-seq", "text/x, application/x-ndjson;q=1": "application/x-ndjson", "application/jsonl": "application/jsonl",
	} {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://d/events?until=200", nil)
		if accept != "" {
			r.Header.Set("Accept", accept)
		}
		resp, err := hc.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.Header.Get("Content-Type") != want {
			t.Errorf("%q: %s, %v", accept, resp.Header.Get("Content-Type"), err)
		}
		if n := strings.Count(string(b), "\x1e{"); (n == 2) != (want == types.MediaTypeJSONSequence) || strings.Count(string(b), "\n") != 2 {
			t.Errorf("%q: %q", accept, b)
		}
	}
}

func TestEventsEndWithTheClient(t *testing.T) {
	f := newFake()
	c := dial(t, serve(t, newServer(t, f)))
	ctx, cancel := context.WithCancel(t.Context())
	ev := c.Events(ctx, client.EventsListOptions{})
	if m := soon(t, ev.Messages, "an event"); m.Actor.ID != webID {
		t.Errorf("%+v", m)
	}
	cancel()
	_ = soon(t, f.attached, "the end of the backend's events")
}

func TestFollowedLogsEndWithTheClient(t *testing.T) {
	f := newFake()
	c := dial(t, serve(t, newServer(t, f)))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := c.ContainerLogs(ctx, "web", client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true, Details: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8+len("k=v+w out 1\n"))
	if _, err := io.ReadFull(r, got); err != nil || string(got[8:]) != "k=v+w out 1\n" {
		t.Errorf("%q, %v", got, err)
	}
	cancel()
	_ = r.Close()
	_ = soon(t, f.attached, "the end of the backend's logs")
}

// A broken transfer is seen as one.
func TestCutArchive(t *testing.T) {
	f := newFake()
	f.fail("late", errors.New("disk gone"))
	c := dial(t, serve(t, newServer(t, f)))
	r, err := c.ImageSave(t.Context(), []string{"a"})
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if err == nil {
		t.Error("a transfer that was cut looks whole")
	}
}

// Serve ends with streams open, and leaves no goroutine of the package behind.
func TestServeEndsStreams(t *testing.T) {
	f := newFake()
	s := newServer(t, f)
	dir := t.TempDir()
	l, err := Listen(t.Context(), ListenConfig{Address: "unix://" + dir + "/s"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	c := dial(t, dir+"/s")
	ev := c.Events(t.Context(), client.EventsListOptions{})
	soon(t, ev.Messages, "an event")
	a, err := c.ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a.Reader, make([]byte, 14)); err != nil {
		t.Fatal(err)
	}
	cancel()
	// The attached client sees the end and leaves.
	go func() {
		_, _ = io.Copy(io.Discard, a.Reader)
		a.Close()
	}()
	if err := soon(t, done, "the end of Serve"); err != nil {
		t.Error(err)
	}
	if left := goroutines("dockerapi.(*hijacked)", "dockerapi.(*Server)"); left != "" {
		t.Errorf("still running:\n%s", left)
	}
}

// goroutines gives the stacks of those that run one of the functions.
func goroutines(of ...string) string {
	b := make([]byte, 1<<20)
	b = b[:runtime.Stack(b, true)]
	var found []string
	for g := range strings.SplitSeq(string(b), "\n\n") {
		for _, name := range of {
			if strings.Contains(g, name) {
				found = append(found, g)
				break
			}
		}
	}
	return strings.Join(found, "\n\n")
}
