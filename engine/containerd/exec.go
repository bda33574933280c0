package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// processType is the type URL under which containerd knows a specs.Process.
const processType = "types.containerd.io/opencontainers/runtime-spec/1/Process"

// maxExecs bounds the execs of one container at a time.
const maxExecs = 1024

func errAttached(id string) error {
	return api.Errorf(api.Conflict, "containerd: the streams of container %s are open already", id)
}

// Exec implements engine.Runtime.
func (r *Runtime) Exec(ctx context.Context, id, execID string, p *specs.Process, withStdin bool) (int, *engine.Streams, error) {
	if err := validID(execID); err != nil {
		return 0, nil, err
	}
	c, err := r.find(id)
	if err != nil {
		return 0, nil, err
	}
	s, err := c.live()
	if err != nil {
		return 0, nil, err
	}
	e := &process{id: execID, pidfd: -1, io: fifosIn(c.dir, "exec-"+execID+"-", withStdin, p.Terminal)}
	if err := c.addExec(e); err != nil {
		return 0, nil, err
	}
	streams, err := r.startExec(r.in(ctx), c, s, e, p)
	if err != nil {
		e.io.remove()
		c.dropExec(e)
		return 0, nil, err
	}
	r.waitExec(c, s, e)
	return e.pid, streams, nil
}

func (c *container) addExec(e *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.status == paused:
		return api.Errorf(api.Conflict, "container %s is paused, unpause the container before exec", c.id)
	case c.status != running || c.closing:
		return api.Errorf(api.Conflict, "container %s is not running", c.id)
	case c.execs[e.id] != nil:
		return api.Errorf(api.Exists, "containerd: exec %s exists already", e.id)
	case len(c.execs) >= maxExecs:
		return api.Errorf(api.ResourceExhausted, "containerd: container %s runs %d execs already; wait for one to end", c.id, maxExecs)
	}
	c.execs[e.id] = e
	c.pending.Add(1)
	return nil
}

func (c *container) dropExec(e *process) {
	c.mu.Lock()
	delete(c.execs, e.id)
	if e.pidfd >= 0 {
		_ = unix.Close(e.pidfd)
		e.pidfd = -1
	}
	c.mu.Unlock()
	c.pending.Done()
}

func (r *Runtime) startExec(ctx context.Context, c *container, s *shim, e *process, p *specs.Process) (_ *engine.Streams, err error) {
	if err := e.io.make(); err != nil {
		return nil, err
	}
	streams, err := e.io.readers()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeStreams(streams)
		}
	}()
	spec, err := json.Marshal(p)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "containerd: exec %s: %w", e.id, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	if _, err := s.task.Exec(ctx, &taskapi.ExecProcessRequest{
		ID: c.id, ExecID: e.id, Terminal: p.Terminal, Stdin: e.io.stdin, Stdout: e.io.stdout, Stderr: e.io.stderr,
		Spec: &anypb.Any{TypeUrl: processType, Value: spec},
	}); err != nil {
		return nil, runtimeError(err, c.id)
	}
	resp, err := s.task.Start(ctx, &taskapi.StartRequest{ID: c.id, ExecID: e.id})
	if err != nil {
		r.deleteExec(c, s, e)
		return nil, runtimeError(err, c.id)
	}
	if e.io.stdin != "" {
		w, werr := e.io.writer(ctx, func() { r.closeIO(c, s, e.id) })
		if werr == nil {
			streams.Stdin = w
		} else if !errors.Is(werr, unix.ENXIO) { // ENXIO: it ended already
			r.deleteExec(c, s, e)
			return nil, werr
		}
	}
	c.mu.Lock()
	e.pid, e.pidfd = int(resp.Pid), openPidfd(int(resp.Pid))
	c.mu.Unlock()
	return streams, nil
}

// waitExec reports the end of an exec when it comes, and removes it.
func (r *Runtime) waitExec(c *container, s *shim, e *process) {
	r.wg.Go(func() {
		resp, err := s.task.Wait(r.in(context.Background()), &taskapi.WaitRequest{ID: c.id, ExecID: e.id})
		exit := engine.Exit{ID: c.id, ExecID: e.id, Pid: e.pid, Code: killed, At: time.Now().UTC().Round(0), Reason: lostReason}
		if err == nil {
			exit.Code, exit.At, exit.Reason = int(resp.ExitStatus), resp.ExitedAt.AsTime(), ""
		}
		r.exits.put(exit)
		c.dropExec(e)
		if err == nil {
			r.deleteExec(c, s, e)
		}
		e.io.remove()
	})
}

func (r *Runtime) deleteExec(c *container, s *shim, e *process) {
	ctx, cancel := context.WithTimeout(r.in(context.Background()), killTimeout)
	defer cancel()
	if _, err := s.task.Delete(ctx, &taskapi.DeleteRequest{ID: c.id, ExecID: e.id}); err != nil {
		r.cfg.Log.Debug("an exec could not be removed from its shim", "container", c.id, "exec", e.id, "error", err)
	}
}

func (c *container) exec(execID string) (*process, error) {
	if e := c.execs[execID]; e != nil {
		return e, nil
	}
	return nil, api.Errorf(api.NotFound, "No such exec instance: %s", execID)
}

// KillExec implements engine.Runtime.
func (r *Runtime) KillExec(_ context.Context, id, execID string, sig int) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, err := c.exec(execID)
	if err != nil {
		return err
	}
	if e.pid == 0 {
		return api.Errorf(api.Conflict, "containerd: exec %s is not running", execID)
	}
	if err := signal(e.pid, e.pidfd, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return classify(err, "containerd: kill exec %s", execID)
	}
	return nil
}

// Resize implements engine.Runtime.
func (r *Runtime) Resize(ctx context.Context, id, execID string, width, height uint32) error {
	return r.call(ctx, id, "resize", func(ctx context.Context, s *shim) error {
		_, err := s.task.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: id, ExecID: execID, Width: width, Height: height})
		return err
	})
}

// CloseStdin implements engine.Runtime.
func (r *Runtime) CloseStdin(ctx context.Context, id, execID string) error {
	return r.call(ctx, id, "close standard input of", func(ctx context.Context, s *shim) error {
		_, err := s.task.CloseIO(ctx, &taskapi.CloseIORequest{ID: id, ExecID: execID, Stdin: true})
		return err
	})
}

// closeIO is CloseStdin for a stream that was closed; nobody waits for it.
func (r *Runtime) closeIO(c *container, s *shim, execID string) {
	ctx, cancel := context.WithTimeout(r.in(context.Background()), dialTimeout)
	defer cancel()
	_, _ = s.task.CloseIO(ctx, &taskapi.CloseIORequest{ID: c.id, ExecID: execID, Stdin: true})
}

// call runs a request to the shim of a live container.
func (r *Runtime) call(ctx context.Context, id, what string, f func(context.Context, *shim) error) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	s, err := c.live()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := uninterrupted(r.in(ctx))
	defer cancel()
	return classify(f(ctx, s), "containerd: %s container %s", what, id)
}
