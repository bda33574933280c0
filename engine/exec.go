package engine

import (
	"context"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
)

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// execution is one exec.
type execution struct {
	mu      sync.Mutex
	started bool
	running bool
	pid     int
	code    *int
	exited  chan struct{} // closed when its end was reported
	at      time.Time     // of the end

	id   string
	c    *ctr
	req  container.ExecCreateRequest
	keys []byte
}

const (
	maxExecs = 4096 // an engine remembers, of a container
	// execKept is how long an ended exec can be inspected.
	execKept = 5 * time.Minute
)

// ExecCreate prepares a process in a running container; nothing runs yet.
func (e *Engine) ExecCreate(ctx context.Context, name string, r *container.ExecCreateRequest) (string, error) {
	c, err := e.find(name)
	if err != nil {
		return "", err
	}
	if _, err := c.running(); err != nil {
		return "", err
	}
	rec := c.snapshot()
	switch {
	case rec.Paused:
		return "", api.Errorf(api.Conflict, "container %s is paused, unpause the container before exec", name)
	case len(r.Cmd) == 0:
		return "", api.Errorf(api.Invalid, "No exec command specified")
	}
	keys, err := parseDetachKeys(r.DetachKeys)
	if err != nil {
		return "", err
	}
	x := &execution{id: newID(), c: c, req: *r, keys: keys, exited: make(chan struct{})}
	if _, err := x.process(ctx); err != nil { // a user that does not exist is told now
		return "", err
	}
	c.mu.Lock()
	dropped := c.forgetExecs(e.cfg.Now())
	if len(c.execs) >= maxExecs {
		c.mu.Unlock()
		return "", api.Errorf(api.ResourceExhausted, "container %s has %d execs already; wait for some to end", name, maxExecs)
	}
	c.execs[x.id] = x
	c.mu.Unlock()
	e.mu.Lock()
	e.execs[x.id] = x
	for _, id := range dropped {
		delete(e.execs, id)
	}
	e.mu.Unlock()
	c.event(execAction(events.ActionExecCreate, r.Cmd), map[string]string{"execID": x.id})
	return x.id, nil
}

func execAction(a events.Action, cmd []string) events.Action {
	return a + events.Action(": "+strings.Join(cmd, " "))
}

// forgetExecs drops what ended a while ago, and returns its ids. The caller
// holds c.mu.
func (c *ctr) forgetExecs(now time.Time) (dropped []string) {
	for id, x := range c.execs {
		x.mu.Lock()
		old := x.started && !x.running && !x.at.IsZero() && now.Sub(x.at) > execKept
		x.mu.Unlock()
		if old {
			delete(c.execs, id)
			dropped = append(dropped, id)
		}
	}
	return dropped
}

func (e *Engine) execOf(id string) (*execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.execs[id]; x != nil {
		return x, nil
	}
	return nil, api.Errorf(api.NotFound, "No such exec instance: %s", id)
}

// process builds what the runtime is to run.
func (x *execution) process(ctx context.Context) (*specs.Process, error) {
	rec := x.c.snapshot()
	req := &x.req
	h := *rec.Host
	h.Privileged = h.Privileged || req.Privileged
	caps, err := capabilities(&h, x.c.e.host.capabilities)
	if err != nil {
		return nil, err
	}
	user := req.User
	if user == "" {
		user = rec.Config.User
	}
	u, home, err := x.c.resolveUser(ctx, &rec, user, rec.Host.GroupAdd)
	if err != nil {
		return nil, err
	}
	u.Umask = h.Umask
	cwd := req.WorkingDir
	if cwd == "" {
		cwd = rec.Config.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	cfg := *rec.Config
	cfg.Tty = req.Tty
	cfg.Env = mergeEnv(rec.Config.Env, req.Env)
	p := &specs.Process{
		Terminal: req.Tty, User: u, Args: req.Cmd, Cwd: cwd, Env: processEnv(&cfg, home),
		Capabilities: capabilitySets(caps, u.UID == 0), Rlimits: x.c.e.rlimits(h.Ulimits), OOMScoreAdj: &h.OomScoreAdj,
	}
	s, err := x.c.e.parseSecurity(&h)
	if err != nil {
		return nil, err
	}
	p.NoNewPrivileges = s.noNewPrivileges && !req.Privileged
	switch {
	case s.apparmor != "" && s.apparmor != "unconfined":
		p.ApparmorProfile = s.apparmor
	case s.apparmor == "" && x.c.e.host.apparmor && !h.Privileged:
		p.ApparmorProfile = apparmorProfile
	}
	if req.Tty && req.ConsoleSize != nil {
		p.ConsoleSize = &specs.Box{Height: req.ConsoleSize[0], Width: req.ConsoleSize[1]}
	}
	return p, nil
}

// ExecStart runs a prepared exec once. It returns when the process ended or
// the detach keys came, or at once when detached. When ctx ends the process
// is killed, unless it is detached or has a terminal's hang-up to hear.
func (e *Engine) ExecStart(ctx context.Context, execID string, detach bool, size *[2]uint, o AttachOptions) error {
	x, err := e.execOf(execID)
	if err != nil {
		return err
	}
	x.mu.Lock()
	switch {
	case x.running:
		x.mu.Unlock()
		return api.Errorf(api.Conflict, "exec %s is already running", execID)
	case x.started:
		x.mu.Unlock()
		return api.Errorf(api.Conflict, "exec %s has already run", execID)
	}
	x.started, x.running = true, true
	x.mu.Unlock()
	if size != nil && x.req.ConsoleSize == nil {
		x.req.ConsoleSize = size
	}
	keys := x.keys
	if o.DetachKeys != "" {
		if keys, err = parseDetachKeys(o.DetachKeys); err != nil {
			x.fail(126)
			return err
		}
	}
	if !x.req.Tty {
		keys = nil
	}
	return x.run(ctx, detach, keys, o)
}

func (x *execution) run(ctx context.Context, detach bool, keys []byte, o AttachOptions) error {
	c := x.c
	if _, err := c.running(); err != nil {
		x.fail(126)
		return err
	}
	p, err := x.process(ctx)
	if err != nil {
		x.fail(126)
		return err
	}
	stdin := x.req.AttachStdin && !detach
	// The end may be reported before Exec returns: exits are matched by id.
	pid, streams, err := c.e.cfg.Runtime.Exec(context.WithoutCancel(ctx), c.id, x.id, p, stdin)
	if err != nil {
		x.fail(failureCode(err))
		return err
	}
	x.mu.Lock()
	x.pid = pid
	x.mu.Unlock()
	c.event(execAction(events.ActionExecStart, x.req.Cmd), map[string]string{"execID": x.id})
	t := newTerminals()
	var client *attachment
	if !detach {
		client = t.join(&o)
	}
	var pumps sync.WaitGroup
	for stream, r := range map[string]io.Reader{"stdout": streams.Stdout, "stderr": streams.Stderr} {
		if f, ok := r.(io.ReadCloser); ok && f != nil {
			pumps.Go(func() {
				defer f.Close()
				copyOut(t, stream, f)
			})
		}
	}
	finished := func() {
		pumps.Wait()
		t.close()
	}
	if detach {
		c.e.spawn(func(ctx context.Context) {
			stop := context.AfterFunc(ctx, func() { closeStreams(streams) })
			defer stop()
			finished()
		})
		return nil
	}
	if streams.Stdin != nil {
		t.open(streams.Stdin)
	}
	go finished()
	return x.await(ctx, client.serve(ctx, keys, !x.req.Tty))
}

// await waits for the end of an attached exec.
func (x *execution) await(ctx context.Context, err error) error {
	switch {
	case err == nil:
		select {
		case <-x.exited:
		case <-ctx.Done():
			x.hangUp()
		}
		return nil
	case ctx.Err() != nil:
		x.hangUp()
		return ctx.Err()
	}
	x.c.event(events.ActionExecDetach, map[string]string{"execID": x.id})
	return err
}

// hangUp ends a process whose client left, as Docker does: it is asked to, and
// killed if it does not.
func (x *execution) hangUp() {
	x.c.e.spawn(func(ctx context.Context) {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			if err := x.c.e.cfg.Runtime.KillExec(ctx, x.c.id, x.id, int(sig)); err != nil {
				return
			}
			t := time.NewTimer(defaultStopTimeout * time.Second)
			select {
			case <-x.exited:
			case <-ctx.Done():
			case <-t.C:
				continue
			}
			t.Stop()
			return
		}
	})
}

// copyOut hands output to who is attached. It is read to its end in any case.
func copyOut(t *terminals, stream string, r io.Reader) {
	buf := make([]byte, pumpBuffer)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			t.write(stream, buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func closeStreams(s *Streams) {
	if s.Stdin != nil {
		_ = s.Stdin.Close()
	}
	if s.Stdout != nil {
		_ = s.Stdout.Close()
	}
	if s.Stderr != nil {
		_ = s.Stderr.Close()
	}
}

func failureCode(err error) int {
	for _, s := range []string{"executable file not found", "no such file or directory"} {
		if strings.Contains(err.Error(), s) {
			return 127
		}
	}
	return 126
}

func (x *execution) fail(code int) { x.done(code, x.c.e.cfg.Now()) }

func (x *execution) done(code int, at time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.code != nil {
		return false
	}
	x.running, x.code, x.at, x.pid = false, &code, at, 0
	close(x.exited)
	return true
}

// execEnded takes the report that an exec's process ended.
func (e *Engine) execEnded(r Exit) {
	x, err := e.execOf(r.ExecID)
	if err != nil {
		e.probeEnded(r)
		return
	}
	if x.done(r.Code, e.cfg.Now()) {
		x.c.event(events.ActionExecDie, map[string]string{"execID": x.id, "exitCode": strconv.Itoa(r.Code)})
	}
}

// ExecResize sets the size of an exec's terminal.
func (e *Engine) ExecResize(ctx context.Context, execID string, width, height uint32) error {
	x, err := e.execOf(execID)
	if err != nil {
		return err
	}
	x.mu.Lock()
	running := x.running && x.pid != 0
	x.mu.Unlock()
	if !running {
		return api.Errorf(api.Conflict, "exec %s is not running", execID)
	}
	return e.cfg.Runtime.Resize(ctx, x.c.id, x.id, width, height)
}

// ExecInspect describes an exec.
func (e *Engine) ExecInspect(_ context.Context, execID string) (*container.ExecInspectResponse, error) {
	x, err := e.execOf(execID)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	privileged := x.req.Privileged
	return &container.ExecInspectResponse{
		ID: x.id, Running: x.running, ExitCode: x.code, ContainerID: x.c.id, Pid: x.pid, DetachKeys: []byte(x.req.DetachKeys),
		OpenStdin: x.req.AttachStdin, OpenStdout: x.req.AttachStdout, OpenStderr: x.req.AttachStderr,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: x.req.Tty, Entrypoint: x.req.Cmd[0], Arguments: x.req.Cmd[1:], Privileged: &privileged, User: x.req.User,
		},
	}, nil
}
