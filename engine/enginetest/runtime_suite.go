package enginetest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// RuntimeEnv is what the Runtime suite runs against.
type RuntimeEnv struct {
	Runtime engine.Runtime
	// Image is the id of an image as ProgImage makes it.
	Image string
	// Restart gives the runtime of a daemon that was killed and started again,
	// on the same state. Nil where there is none.
	Restart func(t *testing.T) engine.Runtime
}

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// Spec is a minimal spec that runs the program.
func Spec(args ...string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: append([]string{"/prog"}, args...), Cwd: "/", Env: []string{"PATH=/", "SUITE=yes"}},
		Root:    &specs.Root{},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
		}},
	}
}

// Runtime holds a runtime to the contract of engine.Runtime.
func Runtime(t *testing.T, open func(t *testing.T) RuntimeEnv) {
	env := open(t)
	s := &runtimeSuite{env: env, r: env.Runtime, seen: make(map[string]engine.Exit)}
	ctx, cancel := context.WithCancel(context.Background())
	s.cond = sync.NewCond(&s.mu)
	done := s.follow(t, ctx)
	defer func() { cancel(); <-done }()
	for _, c := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"Output", s.output}, {"Signals", s.signals}, {"Stdin", s.stdin}, {"Terminal", s.terminal},
		{"Refusals", s.refusals}, {"Unknown", s.unknown}, {"Exec", s.exec}, {"ExecRefusals", s.execRefusals},
		{"ExecEndsFirst", s.execEndsFirst}, {"Pause", s.pause}, {"Observe", s.observe}, {"Rootfs", s.rootfs}, {"MakeRootfs", s.makeRootfs},
		{"EmptyRoot", s.emptyRoot}, {"DeleteRunning", s.deleteRunning}, {"Parallel", s.parallel},
	} {
		t.Run(c.name, c.f)
	}
	if env.Restart == nil {
		return
	}
	t.Run("Restart", func(t *testing.T) {
		made, streams := s.beforeRestart(t)
		cancel()
		<-done
		s.r = env.Restart(t)
		for _, st := range streams { // as the daemon's end does
			closeAll(st)
		}
		s.seen = make(map[string]engine.Exit)
		ctx, cancel = context.WithCancel(context.Background())
		done = s.follow(t, ctx)
		s.afterRestart(t, made)
	})
}

type runtimeSuite struct {
	env RuntimeEnv
	r   engine.Runtime

	mu    sync.Mutex
	cond  *sync.Cond
	seen  map[string]engine.Exit // by id or id/exec
	order []string
	count int
}

// follow collects exits until ctx ends.
func (s *runtimeSuite) follow(t *testing.T, ctx context.Context) <-chan struct{} {
	t.Helper()
	ch, err := s.r.Exits(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range ch {
			key := e.ID
			if e.ExecID != "" {
				key += "/" + e.ExecID
			}
			s.mu.Lock()
			s.seen[key] = e
			s.order = append(s.order, key)
			s.mu.Unlock()
			s.cond.Broadcast()
		}
	}()
	return done
}

// exit waits for the end of a process.
func (s *runtimeSuite) exit(t *testing.T, key string) engine.Exit {
	t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() { s.mu.Lock(); late = true; s.mu.Unlock(); s.cond.Broadcast() })
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if e, ok := s.seen[key]; ok {
			delete(s.seen, key)
			return e
		}
		if late {
			t.Fatalf("the end of %s was not reported", key)
		}
		s.cond.Wait()
	}
}

func (s *runtimeSuite) id(t *testing.T) string {
	s.count++
	return fmt.Sprintf("%s-%d", strings.ToLower(filepath.Base(t.Name())), s.count)
}

// create makes a container that the test's end removes.
func (s *runtimeSuite) create(t *testing.T, c engine.RuntimeContainer) *engine.Streams {
	t.Helper()
	if c.Image == "" {
		c.Image = s.env.Image
	}
	st, err := s.r.Create(t.Context(), c)
	if err != nil {
		t.Fatalf("create %s: %v", c.ID, err)
	}
	t.Cleanup(func() { s.remove(t, c.ID) })
	return st
}

func (s *runtimeSuite) remove(t *testing.T, id string) {
	t.Helper()
	ctx := context.Background()
	if err := s.r.Delete(ctx, id); err != nil {
		t.Errorf("delete %s: %v", id, err)
	}
	if err := s.r.RemoveRootfs(ctx, id); err != nil {
		t.Errorf("remove root of %s: %v", id, err)
	}
}

// run creates and starts; drain tells to read its output away.
func (s *runtimeSuite) run(t *testing.T, c engine.RuntimeContainer) (*engine.Streams, int) {
	t.Helper()
	st := s.create(t, c)
	pid, err := s.r.Start(t.Context(), c.ID)
	if err != nil {
		t.Fatalf("start %s: %v", c.ID, err)
	}
	if pid <= 0 {
		t.Errorf("pid %d", pid)
	}
	return st, pid
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	if r == nil {
		t.Fatal("there is no such stream")
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(b)
}

func expect(t *testing.T, what string, err error, class api.Class) {
	t.Helper()
	if !api.Is(err, class) {
		t.Errorf("%s: error %v of class %d, want class %d", what, err, api.ClassOf(err), class)
	}
}

func (s *runtimeSuite) output(t *testing.T) {
	id := s.id(t)
	st, pid := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("all", "echo", "out", ",", "err", "oops", ",", "env", "SUITE", ",", "exit", "3")})
	if st.Stdin != nil {
		t.Error("there is a standard input that nobody asked for")
	}
	if got := readAll(t, st.Stdout); got != "out\nyes\n" {
		t.Errorf("stdout %q", got)
	}
	if got := readAll(t, st.Stderr); got != "oops\n" {
		t.Errorf("stderr %q", got)
	}
	e := s.exit(t, id)
	if e.Code != 3 || e.Pid != pid || e.ExecID != "" || time.Since(e.At) > time.Minute {
		t.Errorf("exit %+v, pid %d", e, pid)
	}
	_, err := s.r.Start(t.Context(), id)
	expect(t, "start again", err, api.Conflict)
	expect(t, "kill a stopped container", s.r.Kill(t.Context(), id, 9, false), api.Conflict)
	s.remove(t, id)
	s.remove(t, id) // once more is no error
}

func (s *runtimeSuite) signals(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		sig  syscall.Signal
		all  bool
		want int
	}{
		{"kill", []string{"all", "echo", "ready", ",", "sleep"}, syscall.SIGKILL, false, 137},
		{"trap", []string{"trap", "42"}, syscall.SIGTERM, false, 42},
		{"all", []string{"fork"}, syscall.SIGKILL, true, 137},
	} {
		id := s.id(t) + c.name
		st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec(c.args...)})
		line(t, st.Stdout, "ready")
		go drain(st)
		if err := s.r.Kill(t.Context(), id, int(c.sig), c.all); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if e := s.exit(t, id); e.Code != c.want {
			t.Errorf("%s: status %d, want %d", c.name, e.Code, c.want)
		}
	}
}

// line reads one line.
func line(t *testing.T, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, 0, 64)
	one := make([]byte, 1)
	for len(b) == 0 || b[len(b)-1] != '\n' {
		if _, err := r.Read(one); err != nil {
			t.Fatalf("read %q and then %v; want the line %q", b, err, want)
		}
		b = append(b, one[0])
	}
	if got := strings.TrimRight(string(b), "\r\n"); got != want {
		t.Fatalf("line %q, want %q", got, want)
	}
}

func drain(st *engine.Streams) {
	for _, r := range []io.Reader{st.Stdout, st.Stderr} {
		if r != nil {
			_, _ = io.Copy(io.Discard, r)
		}
	}
}

func closeAll(st *engine.Streams) {
	if st.Stdin != nil {
		_ = st.Stdin.Close()
	}
	for _, r := range []io.Closer{st.Stdout, st.Stderr} {
		if r != nil {
			_ = r.Close()
		}
	}
}

func (s *runtimeSuite) stdin(t *testing.T) {
	id := s.id(t)
	st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("cat"), Stdin: true})
	if st.Stdin == nil {
		t.Fatal("no standard input")
	}
	if _, err := io.WriteString(st.Stdin, "hello\n"); err != nil {
		t.Fatal(err)
	}
	line(t, st.Stdout, "hello")
	if err := st.Stdin.Close(); err != nil {
		t.Error(err)
	}
	if e := s.exit(t, id); e.Code != 0 {
		t.Errorf("status %d", e.Code)
	}
}

func (s *runtimeSuite) terminal(t *testing.T) {
	id, spec := s.id(t), Spec("size")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Height: 11, Width: 22}
	st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: spec, Stdin: true})
	if st.Stderr != nil {
		t.Error("a terminal has a standard error of its own")
	}
	line(t, st.Stdout, "11 22")
	if err := s.r.Resize(t.Context(), id, "", 44, 33); err != nil {
		t.Fatal(err)
	}
	line(t, st.Stdout, "33 44")
}

func (s *runtimeSuite) refusals(t *testing.T) {
	ctx, id := t.Context(), s.id(t)
	spec := Spec()
	spec.Process.Args = []string{"/no-such-program"}
	_, err := s.r.Create(ctx, engine.RuntimeContainer{ID: id, Image: s.env.Image, Spec: spec})
	if err == nil {
		_, err = s.r.Start(ctx, id)
		defer s.remove(t, id)
	}
	if err == nil || !strings.Contains(err.Error(), "no such file") && !strings.Contains(err.Error(), "not found") {
		t.Errorf("a program that is not there: %v", err)
	}
	_, err = s.r.Create(ctx, engine.RuntimeContainer{ID: s.id(t), Image: "sha256:" + strings.Repeat("0", 64), Spec: Spec()})
	expect(t, "an image that is not there", err, api.NotFound)
	for _, bad := range []string{"", "../up", "a/b", strings.Repeat("x", 200)} {
		_, err := s.r.Create(ctx, engine.RuntimeContainer{ID: bad, Image: s.env.Image, Spec: Spec()})
		expect(t, fmt.Sprintf("id %.20q", bad), err, api.Invalid)
	}
	id = s.id(t)
	s.create(t, engine.RuntimeContainer{ID: id, Spec: Spec("sleep")})
	_, err = s.r.Create(ctx, engine.RuntimeContainer{ID: id, Image: s.env.Image, Spec: Spec()})
	expect(t, "an id that is taken", err, api.Exists)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	id = s.id(t)
	if _, err := s.r.Create(canceled, engine.RuntimeContainer{ID: id, Image: s.env.Image, Spec: Spec()}); err == nil {
		s.remove(t, id)
	} else {
		s.create(t, engine.RuntimeContainer{ID: id, Spec: Spec()}) // nothing was left behind
	}
}

func (s *runtimeSuite) unknown(t *testing.T) {
	ctx, id := t.Context(), "unknown"
	_, startErr := s.r.Start(ctx, id)
	_, attachErr := s.r.Attach(ctx, id)
	_, _, execErr := s.r.Exec(ctx, id, "e", Spec().Process, false)
	_, pidsErr := s.r.Pids(ctx, id)
	_, statsErr := s.r.Stats(ctx, id)
	_, _, mountErr := s.r.Mount(ctx, id)
	_, changesErr := s.r.Changes(ctx, id)
	_, usageErr := s.r.Usage(ctx, id)
	for name, err := range map[string]error{
		"Start": startErr, "Attach": attachErr, "Exec": execErr, "Pids": pidsErr, "Stats": statsErr, "Mount": mountErr,
		"Changes": changesErr, "Usage": usageErr, "Kill": s.r.Kill(ctx, id, 9, false), "KillExec": s.r.KillExec(ctx, id, "e", 9),
		"Resize": s.r.Resize(ctx, id, "", 1, 1), "CloseStdin": s.r.CloseStdin(ctx, id, ""), "Pause": s.r.Pause(ctx, id),
		"Resume": s.r.Resume(ctx, id), "Update": s.r.Update(ctx, id, &specs.LinuxResources{}),
	} {
		expect(t, name, err, api.NotFound)
	}
	s.remove(t, id)
}

func (s *runtimeSuite) pause(t *testing.T) {
	ctx, id := t.Context(), s.id(t)
	st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("trap", "7")})
	line(t, st.Stdout, "ready")
	go drain(st)
	expect(t, "resume what runs", s.r.Resume(ctx, id), api.Conflict)
	if err := s.r.Pause(ctx, id); err != nil {
		t.Fatal(err)
	}
	expect(t, "pause twice", s.r.Pause(ctx, id), api.Conflict)
	if st := s.stateOf(t, id); !st.Paused || !st.Running {
		t.Errorf("state %+v", st)
	}
	_, _, err := s.r.Exec(ctx, id, "e", Spec("echo").Process, false)
	expect(t, "exec while paused", err, api.Conflict)
	if err := s.r.Resume(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := s.r.Kill(ctx, id, int(syscall.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	if e := s.exit(t, id); e.Code != 7 {
		t.Errorf("exit %+v", e)
	}
	id = s.id(t)
	st, _ = s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("sleep")})
	go drain(st)
	if err := s.r.Pause(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := s.r.Kill(ctx, id, int(syscall.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	if e := s.exit(t, id); e.Code != 137 {
		t.Errorf("killed while paused: %+v", e)
	}
}

func (s *runtimeSuite) stateOf(t *testing.T, id string) engine.RuntimeState {
	t.Helper()
	list, err := s.r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range list {
		if st.ID == id {
			return st
		}
	}
	return engine.RuntimeState{}
}

func (s *runtimeSuite) observe(t *testing.T) {
	ctx, id := t.Context(), s.id(t)
	st := s.create(t, engine.RuntimeContainer{ID: id, Spec: Spec("fork")})
	if got := s.stateOf(t, id); !got.Created || got.Running {
		t.Errorf("before start: %+v", got)
	}
	pid, err := s.r.Start(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	line(t, st.Stdout, "ready")
	go drain(st)
	if got := s.stateOf(t, id); !got.Running || got.Created || got.Paused || got.Pid != pid {
		t.Errorf("running: %+v, pid %d", got, pid)
	}
	pids, err := s.r.Pids(ctx, id)
	if err != nil || len(pids) != 2 {
		t.Errorf("pids %v, %v; want two", pids, err)
	}
	stats, err := s.r.Stats(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if stats.CPUStats.CPUUsage.TotalUsage == 0 || stats.MemoryStats.Usage == 0 || stats.MemoryStats.Limit == 0 || stats.PidsStats.Current == 0 || stats.Read.IsZero() || stats.CPUStats.OnlineCPUs == 0 {
		t.Errorf("stats %+v", stats)
	}
	limit := int64(64 << 20)
	if err := s.r.Update(ctx, id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	if stats, err = s.r.Stats(ctx, id); err != nil || stats.MemoryStats.Limit != uint64(limit) {
		t.Errorf("memory limit %d after the update, %v", stats.MemoryStats.Limit, err)
	}
	if err := s.r.Kill(ctx, id, 9, false); err != nil {
		t.Fatal(err)
	}
	s.exit(t, id)
	if got := s.stateOf(t, id); got.Running || got.Created || got.Code != 137 || got.At.IsZero() {
		t.Errorf("stopped: %+v", got)
	}
	_, err = s.r.Pids(ctx, id)
	expect(t, "pids of a stopped container", err, api.Conflict)
	_, err = s.r.Stats(ctx, id)
	expect(t, "stats of a stopped container", err, api.Conflict)
}

func (s *runtimeSuite) deleteRunning(t *testing.T) {
	id := s.id(t)
	st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("trap", "0")})
	go drain(st)
	if err := s.r.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if e := s.exit(t, id); e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
	if got := s.stateOf(t, id); got.ID != "" {
		t.Errorf("still listed: %+v", got)
	}
}

func (s *runtimeSuite) parallel(t *testing.T) {
	const n = 24
	var wg sync.WaitGroup
	for k := range n {
		id := fmt.Sprintf("parallel-%d", k)
		wg.Go(func() {
			st, err := s.r.Create(t.Context(), engine.RuntimeContainer{ID: id, Image: s.env.Image, Spec: Spec("all", "echo", id, ",", "exit", fmt.Sprint(k))})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.r.Start(t.Context(), id); err != nil {
				t.Error(err)
			}
			if got, _ := bufio.NewReader(st.Stdout).ReadString('\n'); got != id+"\n" {
				t.Errorf("%s wrote %q", id, got)
			}
			drain(st)
		})
	}
	wg.Wait()
	for k := range n {
		id := fmt.Sprintf("parallel-%d", k)
		if e := s.exit(t, id); e.Code != k {
			t.Errorf("%s ended with %d", id, e.Code)
		}
		wg.Go(func() { s.remove(t, id) })
	}
	wg.Wait()
}
