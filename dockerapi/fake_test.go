package dockerapi

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// fake is every backend at once: canned answers, calls written down, errors by
// method name.
type fake struct {
	mu     sync.Mutex
	calls  []string
	errors map[string]error

	tty      bool
	exitCode int64
	started  chan struct{}   // closed by ContainerStart
	ended    chan struct{}   // closed when the attached process ends
	attached chan error      // gets the reason for which an attachment ended
	extra    []swarm.Task    // what TaskList answers
	services []swarm.Service // what ServiceList answers
}

var (
	_ Containers = (*fake)(nil)
	_ Images     = (*fake)(nil)
	_ Volumes    = (*fake)(nil)
	_ System     = (*fake)(nil)
	_ Networks   = (*fake)(nil)
	_ Swarm      = (*fake)(nil)
	_ Cluster    = (*fake)(nil)
)

const (
	webID  = "4e5f6a7b8c9d4e5f6a7b8c9d4e5f6a7b8c9d4e5f6a7b8c9d4e5f6a7b8c9dabcd"
	nodeID = "node1aaaaaaaaaaaaaaaaaaaa"
	svcID  = "svc1aaaaaaaaaaaaaaaaaaaaa"
	taskID = "task1aaaaaaaaaaaaaaaaaaaa"
)

func newFake() *fake {
	return &fake{errors: map[string]error{}, started: make(chan struct{}), ended: make(chan struct{}), attached: make(chan error, 4)}
}

// newServer returns a server on a fake.
func newServer(t testing.TB, f *fake, change ...func(*Config)) *Server {
	t.Helper()
	cfg := Config{
		Containers: f, Images: f, Volumes: f, System: f, Networks: f, Swarm: f, Cluster: f,
		Logger: slog.New(slog.DiscardHandler), Version: "1.2.3",
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs the server on a unix socket until the test ends; it returns the
// socket's path.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := Listen(t.Context(), ListenConfig{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}

func (f *fake) call(method string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := method + "("
	for i, a := range args {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%+v", a)
	}
	f.calls = append(f.calls, s+")")
	return f.errors[method]
}

func (f *fake) fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errors[method] = err
}

func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fake) find(kind, name string, known ...string) error {
	for _, k := range known {
		if name == k || len(name) >= 3 && strings.HasPrefix(k, name) {
			return nil
		}
	}
	return api.Errorf(api.NotFound, "%s: %s", kind, name)
}

func (f *fake) container(method, name string, args ...any) error {
	if err := f.call(method, append([]any{name}, args...)...); err != nil {
		return err
	}
	return f.find("No such container", name, "web", webID)
}

func (f *fake) ContainerCreate(_ context.Context, o engine.CreateOptions) (*container.CreateResponse, error) {
	err := f.call("ContainerCreate", o.Name, o.Config.Image, o.Config.Cmd, o.Platform)
	return &container.CreateResponse{ID: webID}, err
}

func (f *fake) ContainerStart(_ context.Context, name string) error {
	err := f.container("ContainerStart", name)
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.started:
	default:
		close(f.started)
	}
	return err
}

func (f *fake) ContainerStop(_ context.Context, name string, o engine.StopOptions) error {
	t := "nil"
	if o.Timeout != nil {
		t = fmt.Sprint(*o.Timeout)
	}
	return f.container("ContainerStop", name, o.Signal, t)
}

func (f *fake) ContainerRestart(_ context.Context, name string, o engine.StopOptions) error {
	return f.container("ContainerRestart", name, o.Signal)
}

func (f *fake) ContainerKill(_ context.Context, name, signal string) error {
	return f.container("ContainerKill", name, signal)
}
func (f *fake) ContainerPause(_ context.Context, name string) error {
	return f.container("ContainerPause", name)
}
func (f *fake) ContainerUnpause(_ context.Context, name string) error {
	return f.container("ContainerUnpause", name)
}
func (f *fake) ContainerRename(_ context.Context, name, n string) error {
	return f.container("ContainerRename", name, n)
}
func (f *fake) ContainerUpdate(_ context.Context, name string, u *container.UpdateConfig) (*container.UpdateResponse, error) {
	return &container.UpdateResponse{}, f.container("ContainerUpdate", name, u.Memory)
}
func (f *fake) ContainerRemove(_ context.Context, name string, o engine.RemoveOptions) error {
	return f.container("ContainerRemove", name, o)
}
func (f *fake) ContainerPrune(_ context.Context, fl api.Filters) (*container.PruneReport, error) {
	return &container.PruneReport{}, f.call("ContainerPrune", fl)
}

func (f *fake) ContainerList(_ context.Context, o engine.ContainerListOptions) ([]container.Summary, error) {
	return []container.Summary{{
		ID: webID, Names: []string{"/web"}, Image: "app:1", ImageID: "sha256:11", Command: "/testprog sleep",
		Created: time.Now().Add(-time.Hour).Unix(), State: container.StateRunning, Status: "Up 59 minutes",
		Ports: []container.PortSummary{{IP: netip.MustParseAddr("0.0.0.0"), PrivatePort: 80, PublicPort: 8080, Type: "tcp"}},
	}}, f.call("ContainerList", o)
}

func (f *fake) ContainerInspect(_ context.Context, name string, size bool) (*container.InspectResponse, error) {
	err := f.container("ContainerInspect", name, size)
	return &container.InspectResponse{
		ID: webID, Name: "/web", Image: "sha256:11", Created: "2026-01-02T03:04:05Z", Path: "/testprog",
		State:      &container.State{Status: container.StateRunning, Running: true, Pid: 77},
		Config:     &container.Config{Image: "app:1", Tty: f.tty, OpenStdin: true, Labels: map[string]string{"a": "b"}},
		HostConfig: &container.HostConfig{NetworkMode: "bridge"},
		NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
			"bridge": {IPAddress: netip.MustParseAddr("172.17.0.2"), IPPrefixLen: 16, EndpointID: "ep"},
		}},
	}, err
}

func (f *fake) ContainerTop(_ context.Context, name, args string) (*container.TopResponse, error) {
	return &container.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"77", "testprog"}}}, f.container("ContainerTop", name, args)
}

func (f *fake) ContainerStats(ctx context.Context, name string, stream, oneShot bool, fn func(*container.StatsResponse) error) error {
	if err := f.container("ContainerStats", name, stream, oneShot); err != nil {
		return err
	}
	st := &container.StatsResponse{
		ID: webID, Name: "/web", OSType: "linux", Read: time.Unix(10, 0), PreRead: time.Unix(9, 0),
		MemoryStats: container.MemoryStats{Usage: 1 << 20, Limit: 1 << 30},
	}
	st.CPUStats = container.CPUStats{CPUUsage: container.CPUUsage{TotalUsage: 2e8}, SystemUsage: 2e9, OnlineCPUs: 2}
	st.PreCPUStats = container.CPUStats{CPUUsage: container.CPUUsage{TotalUsage: 1e8}, SystemUsage: 1e9, OnlineCPUs: 2}
	if err := fn(st); err != nil || !stream {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) ContainerResize(_ context.Context, name string, w, h uint32) error {
	return f.container("ContainerResize", name, w, h)
}

func logLines() []engine.LogMessage {
	return []engine.LogMessage{
		{Source: "stdout", At: time.Unix(100, 5), Line: []byte("out 1\n"), Attrs: map[string]string{"k": "v w"}},
		{Source: "stderr", At: time.Unix(101, 0), Line: []byte("err 1\n")},
		{Source: "stdout", At: time.Unix(102, 0), Line: []byte("out 2\n")},
	}
}

func (f *fake) ContainerLogs(ctx context.Context, name string, o engine.LogsOptions, fn func(engine.LogMessage) error) (bool, error) {
	if err := f.container("ContainerLogs", name, o.Follow, o.Tail, o.Since.Unix()); err != nil {
		return false, err
	}
	for _, m := range logLines() {
		if err := fn(m); err != nil {
			return false, err
		}
	}
	if o.Follow {
		<-ctx.Done()
		f.attached <- ctx.Err()
		return false, ctx.Err()
	}
	return false, nil
}

func (f *fake) ContainerTTY(_ context.Context, name string) (bool, error) {
	return f.tty, f.container("ContainerTTY", name)
}

// ContainerAttach echoes what comes in, in capitals, until the input or the
// context ends.
func (f *fake) ContainerAttach(ctx context.Context, name string, o engine.AttachOptions) error {
	err := f.call("ContainerAttach", name, o.Stdin != nil, o.Stdout != nil, o.Stderr != nil, o.Logs, o.DetachKeys)
	if err != nil {
		return err
	}
	err = f.talk(ctx, o)
	f.attached <- err
	return err
}

func (f *fake) talk(ctx context.Context, o engine.AttachOptions) error {
	if o.Stderr != nil {
		_, _ = io.WriteString(o.Stderr, "hello\n")
	}
	if o.Stdin == nil {
		select {
		case <-f.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	stop := context.AfterFunc(ctx, func() {})
	defer stop()
	b := make([]byte, 1<<10)
	for {
		n, err := o.Stdin.Read(b)
		if n > 0 && o.Stdout != nil {
			if _, err := o.Stdout.Write([]byte(strings.ToUpper(string(b[:n])))); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (f *fake) ContainerWait(_ context.Context, name string, cond container.WaitCondition) (<-chan container.WaitResponse, error) {
	if err := f.container("ContainerWait", name, cond); err != nil {
		return nil, err
	}
	ch := make(chan container.WaitResponse, 1)
	started := f.started
	go func() {
		<-started
		ch <- container.WaitResponse{StatusCode: f.exitCode}
	}()
	return ch, nil
}

func (f *fake) ContainerChanges(_ context.Context, name string) ([]container.FilesystemChange, error) {
	return nil, f.container("ContainerChanges", name)
}

func (f *fake) ContainerExport(_ context.Context, name string, w io.Writer) error {
	if err := f.container("ContainerExport", name); err != nil {
		return err
	}
	_, err := io.WriteString(w, "tar")
	return err
}

func (f *fake) ContainerStatPath(_ context.Context, name, path string) (*container.PathStat, error) {
	err := f.container("ContainerStatPath", name, path)
	if err == nil && strings.Contains(path, "nothere") {
		err = api.Errorf(api.NotFound, "Could not find the file %s in container %s", path, name)
	}
	return &container.PathStat{Name: "hello.txt", Size: 5, Mode: 0o644, Mtime: time.Unix(5, 0)}, err
}

func (f *fake) ContainerArchive(_ context.Context, name, path string, w io.Writer, stat func(*container.PathStat)) error {
	if err := f.container("ContainerArchive", name, path); err != nil {
		return err
	}
	stat(&container.PathStat{Name: "hello.txt", Size: 5, Mode: 0o644, Mtime: time.Unix(5, 0)})
	tw := tar.NewWriter(w)
	_ = tw.WriteHeader(&tar.Header{Name: "hello.txt", Size: 5, Mode: 0o644, Typeflag: tar.TypeReg})
	_, _ = io.WriteString(tw, "world")
	return tw.Close()
}

func (f *fake) ContainerExtract(_ context.Context, name, path string, r io.Reader, no, copyIDs bool) error {
	all := ""
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err != nil {
			break
		}
		b, _ := io.ReadAll(tr)
		all += h.Name + "=" + string(b)
	}
	return f.container("ContainerExtract", name, path, all, no, copyIDs)
}

func (f *fake) ContainerCommit(_ context.Context, name string, o engine.CommitOptions) (string, error) {
	return "sha256:22", f.container("ContainerCommit", name, o.Ref, o.Pause, o.Changes)
}

func (f *fake) ExecCreate(_ context.Context, name string, r *container.ExecCreateRequest) (string, error) {
	return "exec1", f.container("ExecCreate", name, r.Cmd, r.Tty)
}

func (f *fake) ExecStart(ctx context.Context, id string, detach bool, size *[2]uint, o engine.AttachOptions) error {
	if err := f.call("ExecStart", id, detach, size != nil, o.Stdin != nil, o.Stdout != nil); err != nil || detach {
		return err
	}
	if o.Stdin == nil {
		_, err := io.WriteString(o.Stdout, "exec output\n")
		return err
	}
	return f.talk(ctx, o)
}

func (f *fake) ExecResize(_ context.Context, id string, w, h uint32) error {
	return f.call("ExecResize", id, w, h)
}

func (f *fake) ExecInspect(_ context.Context, id string) (*container.ExecInspectResponse, error) {
	if err := f.call("ExecInspect", id); err != nil {
		return nil, err
	}
	r := &container.ExecInspectResponse{ID: id, ContainerID: webID, OpenStdin: slices.Contains(f.took(), "ExecStdin()"), OpenStdout: true, OpenStderr: true}
	if slices.ContainsFunc(f.took(), func(s string) bool { return strings.HasPrefix(s, "ExecStart(") }) {
		code := int(f.exitCode)
		r.ExitCode = &code
	}
	return r, f.find("No such exec instance", id, "exec1")
}
