package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/legion-swarm/legion/engine"
)

// restore takes over what an earlier process left: containers whose shim
// answers go on, others are ended and reported, half-made ones removed.
func (r *Runtime) restore(ctx context.Context) error {
	if err := r.unmountLeftovers(); err != nil {
		return err
	}
	if err := removeDoomed(r.dir); err != nil {
		return err
	}
	ids, err := names(r.shims.dir)
	if err != nil {
		return err
	}
	found := make(map[string]*shim, len(ids))
	for _, id := range ids {
		found[id] = r.shims.adopt(ctx, id)
	}
	if ids, err = names(r.dir); err != nil {
		return err
	}
	for _, id := range ids {
		if err := r.restoreOne(ctx, id, found); err != nil {
			return err
		}
	}
	if ids, err = names(filepath.Join(r.cfg.State, "runc", r.cfg.Namespace)); err != nil {
		return err
	}
	for _, id := range ids {
		if r.all[id] == nil {
			if err := r.purge(ctx, id); err != nil {
				r.cfg.Log.Warn("cannot remove what is left of a container", "container", id, "error", err)
			}
		}
	}
	for _, s := range found {
		if s.err != nil {
			r.shims.drop(s)
			continue
		}
		r.shims.mu.Lock()
		s.refs++ // so that release ends it if nothing else holds it
		r.shims.mu.Unlock()
		r.shims.release(ctx, s)
	}
	return nil
}

// removeDoomed removes what a removal that was cut short has left in a folder.
func removeDoomed(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			err = errors.Join(err, removeAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// names lists a folder that may not exist, without hidden entries.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if os.IsNotExist(err) {
			return nil, nil
		}
		return nil, err
	}
	var n []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			n = append(n, e.Name())
		}
	}
	return n, nil
}

func (r *Runtime) restoreOne(ctx context.Context, id string, found map[string]*shim) error {
	c := newContainer(r.dir, id)
	c.terminal = !exists(filepath.Join(c.dir, "2"))
	c.io = fifosIn(c.dir, "", exists(filepath.Join(c.dir, "0")), c.terminal)
	shimID, err := os.ReadFile(filepath.Join(c.dir, "shim"))
	if err != nil { // not yet created when the daemon died
		return removeBundle(c.dir)
	}
	s := found[string(shimID)]
	if s == nil || s.err != nil {
		r.all[id] = c
		c.status, c.pid = running, readPid(c.dir)
		r.endLost(ctx, c)
		return nil
	}
	st, err := settledState(ctx, s, id)
	if err != nil {
		if errdefs.IsNotFound(errgrpc.ToNative(err)) {
			return r.scrap(ctx, c, s, true)
		}
		return classify(err, "containerd: state of container %s", id)
	}
	r.all[id] = c
	r.adoptTask(c, s, st)
	return nil
}

// settledState is the shim's answer about id. The shim may still be creating
// it for the daemon that died, and knows nothing of it until that is done.
func settledState(ctx context.Context, s *shim, id string) (*taskapi.StateResponse, error) {
	for try := 0; ; try++ {
		st, err := s.task.State(ctx, &taskapi.StateRequest{ID: id})
		if err == nil || !errdefs.IsNotFound(errgrpc.ToNative(err)) || try == 20 {
			return st, err
		}
		select {
		case <-time.After(25 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *Runtime) adoptTask(c *container, s *shim, st *taskapi.StateResponse) {
	c.shim, c.pid = s, int(st.Pid)
	r.shims.mu.Lock()
	s.refs++
	r.shims.mu.Unlock()
	switch st.Status {
	case task.Status_CREATED:
		c.status = created
	case task.Status_PAUSED, task.Status_PAUSING:
		c.status = paused
	case task.Status_STOPPED:
		c.status = running
		r.ended(c, int(st.ExitStatus), st.ExitedAt.AsTime(), "")
		return
	default:
		c.status = running
	}
	c.pidfd = openPidfd(c.pid)
	r.wait(c, s)
}

func readPid(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "init.pid"))
	if err != nil {
		return 0
	}
	pid := 0
	for _, d := range b {
		if d < '0' || d > '9' || pid > 1<<30 {
			break
		}
		pid = pid*10 + int(d-'0')
	}
	return pid
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// List implements engine.Runtime.
func (r *Runtime) List(context.Context) ([]engine.RuntimeState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]engine.RuntimeState, 0, len(r.all))
	for _, c := range r.all {
		s := c.state()
		if s.Pid == 0 && s.At.IsZero() {
			continue // being created
		}
		list = append(list, s)
	}
	return list, nil
}

// Attach implements engine.Runtime.
func (r *Runtime) Attach(ctx context.Context, id string) (_ *engine.Streams, err error) {
	c, err := r.find(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	taken, s, live := c.attached, c.shim, c.status != stopped
	c.attached = true
	c.mu.Unlock()
	if taken {
		return nil, errAttached(id)
	}
	defer func() {
		if err != nil {
			c.mu.Lock()
			c.attached = false
			c.mu.Unlock()
		}
	}()
	streams, err := c.io.readers()
	if err != nil {
		return nil, classify(err, "containerd: streams of container %s", id)
	}
	if c.io.stdin != "" && s != nil && live {
		if streams.Stdin, err = c.io.writer(ctx, func() { r.closeIO(c, s, "") }); err != nil {
			closeStreams(streams)
			return nil, classify(err, "containerd: standard input of container %s", id)
		}
	}
	return streams, nil
}
