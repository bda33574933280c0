package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

const (
	killed      = 128 + int(unix.SIGKILL)
	killTimeout = 15 * time.Second // for a killed process to be gone
	// unreadPatience is how long the output of a container that is removed may
	// stay unread. The shim itself gives up after 10 s.
	unreadPatience = time.Second
	lostReason     = "the runc shim that ran the container died, so the container was killed"
)

// wait reports the end of the init process when it comes.
func (r *Runtime) wait(c *container, s *shim) {
	r.wg.Go(func() {
		resp, err := s.task.Wait(r.in(context.Background()), &taskapi.WaitRequest{ID: c.id})
		if err != nil {
			return // the connection is gone: orphan, or Close
		}
		// Its execs ended before it, and are reported before it.
		c.mu.Lock()
		c.closing = true
		c.mu.Unlock()
		c.pending.Wait()
		r.ended(c, int(resp.ExitStatus), resp.ExitedAt.AsTime(), "")
	})
}

func (r *Runtime) ended(c *container, code int, at time.Time, reason string) {
	if c.end(code, at, reason) {
		r.exits.put(engine.Exit{ID: c.id, Pid: c.pid, Code: code, At: at, Reason: reason})
	}
}

// Kill implements engine.Runtime.
func (r *Runtime) Kill(ctx context.Context, id string, sig int, all bool) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	s, err := c.live()
	if err != nil {
		return err
	}
	ctx = r.in(ctx)
	if all {
		_, err := s.task.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(sig), All: true})
		return classify(err, "containerd: kill container %s", id)
	}
	// The kernel is asked directly: an execution of runc would cost as much as
	// a container's start.
	c.mu.Lock()
	frozen := c.status == paused
	if c.status == stopped {
		err = api.Errorf(api.Conflict, "container %s is not running", id)
	} else if err = signal(c.pid, c.pidfd, sig); errors.Is(err, unix.ESRCH) {
		err = api.Errorf(api.Conflict, "container %s is not running", id)
	}
	c.mu.Unlock()
	if err == nil && frozen && sig == int(unix.SIGKILL) {
		return r.Resume(ctx, id) // on cgroup v1 a frozen process does not die
	}
	return classify(err, "containerd: kill container %s", id)
}

// Delete implements engine.Runtime.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	c, err := r.find(id)
	if err != nil {
		return nil
	}
	ctx = r.in(ctx)
	c.mu.Lock()
	if c.deleting || c.status == creating {
		c.mu.Unlock()
		return api.Errorf(api.Conflict, "containerd: container %s is being created or removed", id)
	}
	c.deleting = true
	s := c.shim
	c.mu.Unlock()
	if err := r.delete(ctx, c, s); err != nil {
		c.mu.Lock()
		c.deleting = false
		c.mu.Unlock()
		return err
	}
	r.forget(c)
	return nil
}

func (r *Runtime) delete(ctx context.Context, c *container, s *shim) error {
	select {
	case <-c.exited:
	default:
		if err := r.killAndWait(ctx, c); err != nil {
			return err
		}
	}
	if s != nil {
		ctx, cancel := uninterrupted(ctx)
		defer cancel()
		defer time.AfterFunc(unreadPatience, c.discard).Stop()
		_, err := s.task.Delete(ctx, &taskapi.DeleteRequest{ID: c.id})
		if err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			select {
			case <-s.gone: // orphan cleans up after it
			default:
				return classify(err, "containerd: remove container %s", c.id)
			}
		}
	}
	if err := removeBundle(c.dir); err != nil {
		return err
	}
	if s != nil {
		r.shims.release(context.WithoutCancel(ctx), s)
	}
	return nil
}

func (r *Runtime) killAndWait(ctx context.Context, c *container) error {
	if err := r.Kill(ctx, c.id, int(unix.SIGKILL), false); err != nil && !api.Is(err, api.Conflict) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return api.Errorf(api.DeadlineExceeded, "containerd: container %s was killed but its process %d is still there: %w", c.id, c.pid, ctx.Err())
	}
}

// discard reads away output that nobody does, for which the shim would wait.
func (c *container) discard() {
	streams, err := c.io.readers()
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	for _, s := range []io.Reader{streams.Stdout, streams.Stderr} {
		if s != nil {
			wg.Go(func() { _, _ = io.Copy(io.Discard, s) })
		}
	}
	wg.Wait()
	closeStreams(streams)
}

// removeBundle removes a bundle whose processes are gone. It is moved away first: the
// shim writes exit.json after it has said that the process ended, and must not find a
// folder that is being removed, or the next one of the same name.
func removeBundle(dir string) error {
	if err := mount.UnmountRecursive(filepath.Join(dir, "rootfs"), 0); err != nil {
		if err := mount.UnmountRecursive(filepath.Join(dir, "rootfs"), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("containerd: unmount %s/rootfs: %w", dir, err)
		}
	}
	// Not RemoveAll of a root file system, should it be mounted all the same.
	if err := os.Remove(filepath.Join(dir, "rootfs")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	doomed := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir))
	if err := removeAll(doomed); err != nil {
		return err
	}
	if err := os.Rename(dir, doomed); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return removeAll(doomed)
}

// scrap undoes a creation that failed; asked tells whether the shim knows of it.
func (r *Runtime) scrap(ctx context.Context, c *container, s *shim, asked bool) error {
	if asked {
		ctx, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		if _, err := s.task.State(ctx, &taskapi.StateRequest{ID: c.id}); err == nil {
			_, _ = s.task.Kill(ctx, &taskapi.KillRequest{ID: c.id, Signal: uint32(unix.SIGKILL), All: true})
			_, _ = s.task.Wait(ctx, &taskapi.WaitRequest{ID: c.id})
			_, _ = s.task.Delete(ctx, &taskapi.DeleteRequest{ID: c.id})
		}
		if err := r.purge(ctx, c.id); err != nil {
			return err
		}
	}
	return removeBundle(c.dir)
}

// purge kills and removes whatever runc knows of id, without a shim.
func (r *Runtime) purge(ctx context.Context, id string) error {
	root := filepath.Join(r.cfg.State, "runc", r.cfg.Namespace)
	if _, err := os.Stat(filepath.Join(root, id)); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, r.cfg.Runc, "--root", root, "delete", "--force", id).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "does not exist") {
		return fmt.Errorf("containerd: runc delete --force %s: %w: %s", id, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// orphan ends the containers of a shim that died.
func (r *Runtime) orphan(s *shim) {
	r.mu.Lock()
	var lost []*container
	for _, c := range r.all {
		c.mu.Lock()
		if c.shim == s {
			c.shim = nil
			lost = append(lost, c)
		}
		c.mu.Unlock()
	}
	r.mu.Unlock()
	r.shims.drop(s)
	r.cfg.Log.Error("a runc shim died; its containers are killed", "shim", s.id, "containers", len(lost))
	for _, c := range lost {
		r.endLost(context.Background(), c)
	}
}

// endLost kills what is left of a container without a shim and reports it.
func (r *Runtime) endLost(ctx context.Context, c *container) {
	code, at, reason := killed, time.Now().UTC().Round(0), lostReason
	// That of another process is of an earlier container of this name.
	if e, err := readExit(c.dir); err == nil && (c.pid == 0 || e.Pid == c.pid) {
		code, at, reason = e.Status, e.Timestamp, ""
	}
	if err := r.purge(ctx, c.id); err != nil {
		r.cfg.Log.Error("cannot clean up after a lost container", "container", c.id, "error", err)
	}
	r.ended(c, code, at, reason)
}

// exitRecord is what the shim writes to exit.json in the bundle when the init
// process ended (containerd 2.4).
type exitRecord struct {
	Timestamp time.Time
	Pid       int
	Status    int
}

func readExit(dir string) (exitRecord, error) {
	var e exitRecord
	b, err := os.ReadFile(filepath.Join(dir, "exit.json"))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, err
	}
	if e.Pid <= 0 || e.Timestamp.IsZero() || e.Status < 0 {
		return e, fmt.Errorf("%s/exit.json is not an exit", dir)
	}
	return e, nil
}
