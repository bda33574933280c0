package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Create implements engine.Runtime.
func (r *Runtime) Create(ctx context.Context, rc engine.RuntimeContainer) (_ *engine.Streams, err error) {
	if err := validID(rc.ID); err != nil {
		return nil, err
	}
	if rc.Spec == nil || rc.Spec.Process == nil {
		return nil, api.Errorf(api.Invalid, "containerd: container %s has no process in its spec", rc.ID)
	}
	ctx = r.in(ctx)
	c, err := r.reserve(rc)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.forget(c)
		}
	}()
	chain, err := r.images.chain(ctx, rc.Image, rc.Platform)
	if err != nil {
		return nil, err
	}
	mounts, err := r.layers.prepare(ctx, c.id, origin{chain, rc.Image, rc.Platform}, rc.ReuseRootfs, rc.SizeBytes)
	if err != nil {
		return nil, err
	}
	s, err := r.launch(ctx, c, rc, mounts)
	if err != nil && !rc.ReuseRootfs {
		err = errors.Join(err, r.layers.remove(context.WithoutCancel(ctx), c.id))
	}
	return s, err
}

func (r *Runtime) reserve(rc engine.RuntimeContainer) (*container, error) {
	c := newContainer(r.dir, rc.ID)
	c.terminal = rc.Spec.Process.Terminal
	c.io = fifosIn(c.dir, "", rc.Stdin, c.terminal)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[c.id] != nil {
		return nil, api.Errorf(api.Exists, "containerd: container %s exists already", c.id)
	}
	r.all[c.id] = c
	return c, nil
}

func (r *Runtime) forget(c *container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[c.id] == c {
		delete(r.all, c.id)
	}
}

// launch writes the bundle and has a shim create the container.
func (r *Runtime) launch(ctx context.Context, c *container, rc engine.RuntimeContainer, mounts []mount.Mount) (_ *engine.Streams, err error) {
	s, err := r.shims.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer r.shims.created(s)
	asked := false
	defer func() {
		if err != nil {
			err = errors.Join(err, r.scrap(context.WithoutCancel(ctx), c, s, asked))
			r.shims.release(context.WithoutCancel(ctx), s)
		}
	}()
	if err := r.writeBundle(c, rc, s); err != nil {
		return nil, err
	}
	streams, err := c.io.readers()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeStreams(streams)
		}
	}()
	if err = ctx.Err(); err != nil {
		return nil, err
	}
	asked = true
	pid, err := r.createTask(ctx, c, s, mounts)
	if err != nil {
		return nil, err
	}
	if c.io.stdin != "" {
		if streams.Stdin, err = c.io.writer(ctx, func() { r.closeIO(c, s, "") }); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	c.shim, c.pid, c.pidfd, c.status, c.attached = s, pid, openPidfd(pid), created, true
	c.mu.Unlock()
	r.wait(c, s)
	return streams, nil
}

func (r *Runtime) createTask(ctx context.Context, c *container, s *shim, mounts []mount.Mount) (int, error) {
	q := &taskapi.CreateTaskRequest{
		ID: c.id, Bundle: c.dir, Terminal: c.terminal, Options: r.options,
		Stdin: c.io.stdin, Stdout: c.io.stdout, Stderr: c.io.stderr,
	}
	for _, m := range mounts {
		q.Rootfs = append(q.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	resp, err := s.task.Create(ctx, q)
	if err != nil {
		return 0, runtimeError(err, c.id)
	}
	return int(resp.Pid), nil
}

// uninterrupted is for requests to a shim that change something: the shim goes
// on with them when the caller gives up, so their outcome is waited for.
func uninterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), shimCallTimeout)
}

// runtimeError makes runc's words the error's. What the image or the spec has
// wrong is Invalid.
func runtimeError(err error, id string) error {
	err = errgrpc.ToNative(err)
	class := classOf(err)
	if class == api.Internal {
		for _, s := range []string{"executable file not found", "no such file or directory", "permission denied", "is a directory", "not a directory", "exec format error"} {
			if strings.Contains(err.Error(), s) {
				class = api.Invalid
			}
		}
	}
	return api.Errorf(class, "container %s: %w", id, err)
}

func (r *Runtime) writeBundle(c *container, rc engine.RuntimeContainer, s *shim) error {
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(c.rootfs(), 0o711); err != nil {
		return err
	}
	spec, err := json.Marshal(r.complete(c, rc.Spec))
	if err != nil {
		return api.Errorf(api.Invalid, "containerd: container %s: spec: %w", c.id, err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "config.json"), spec, 0o600); err != nil {
		return err
	}
	if err := c.io.make(); err != nil {
		return err
	}
	return writeFile(filepath.Join(c.dir, "shim"), s.id)
}

// complete returns the spec with what the runtime adds: root and cgroup.
func (r *Runtime) complete(c *container, spec *specs.Spec) *specs.Spec {
	full := *spec
	root := specs.Root{Path: c.rootfs()}
	if spec.Root != nil {
		root.Readonly = spec.Root.Readonly
	}
	full.Root = &root
	linux := specs.Linux{}
	if spec.Linux != nil {
		linux = *spec.Linux
	}
	parent := linux.CgroupsPath
	if parent == "" {
		parent = r.cfg.CgroupParent
	}
	linux.CgroupsPath = filepath.Join("/", parent, c.id)
	full.Linux = &linux
	full.Annotations = maps.Clone(spec.Annotations)
	return &full
}

// Start implements engine.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) (int, error) {
	c, err := r.find(id)
	if err != nil {
		return 0, err
	}
	s, err := c.live()
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	ctx, cancel := uninterrupted(r.in(ctx))
	defer cancel()
	resp, err := s.task.Start(ctx, &taskapi.StartRequest{ID: id})
	if err != nil {
		return 0, runtimeError(err, id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == created {
		c.status = running
	}
	return int(resp.Pid), nil
}

func (r *Runtime) find(id string) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.all[id]
	if c == nil {
		return nil, api.Errorf(api.NotFound, "No such container: %s", id)
	}
	return c, nil
}

// RemoveRootfs implements engine.Runtime.
func (r *Runtime) RemoveRootfs(ctx context.Context, id string) error {
	if err := validID(id); err != nil {
		return err
	}
	return r.layers.remove(r.in(ctx), id)
}
