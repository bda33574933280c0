package executor

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// controller runs one task.
type controller struct {
	task *api.Task
	auth string // the task's registry login; only run's goroutine has it

	e      *Executor
	engine *engine.Engine
	deps   exec.Dependencies
	once   sync.Once
	made   chan struct{} // closed when the container was started here
	ready  *readiness    // nil: the service has no test
	// drainDelay is how long the task serves on when it is to stop.
	drainDelay time.Duration
	// unfit is closed when the task is never to be given work again, unfitWhy is set
	// before.
	unfit    chan struct{}
	unfitWhy error
}

var (
	// errUnhealthy is Docker's words for it.
	errUnhealthy = errors.New("unhealthy container")
	errExited    = errors.New("its process has ended")
)

// id of the task's container.
func (c *controller) id() (string, bool) { return c.e.container(c.task.ID) }

// Prepare implements exec.Controller.
func (c *controller) Prepare(ctx context.Context) error {
	if _, ok := c.id(); ok {
		return nil
	}
	o, err := c.options(ctx)
	if err != nil {
		return err
	}
	if n := c.e.node(); n != nil && o.Config.Labels[labelNodeID] == "" {
		o.Config.Labels[labelNodeID] = n.ID
	}
	if err := c.usable(); err != nil {
		return err
	}
	if err := c.pull(ctx, o.Config.Image); err != nil {
		return err
	}
	resp, err := c.engine.ContainerCreate(ctx, *o)
	if err != nil {
		if api.Is(err, api.Invalid) {
			return exec.Rejected(err)
		}
		return err
	}
	c.e.remember(c.task.ID, resp.ID)
	return nil
}

// expandPatience is how long templates may take, which are bounded by work too.
const expandPatience = 10 * time.Second

func (c *controller) options(ctx context.Context) (*engine.CreateOptions, error) {
	limited, cancel := context.WithTimeout(ctx, expandPatience)
	defer cancel()
	o, err := options(limited, c.task, c.deps, c.engine.Hostname(), c.engine.Platform())
	switch {
	case err == nil:
		return o, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, exec.Rejected(api.Errorf(api.Invalid, "the templates of the service take longer than %s to expand", expandPatience))
	}
	return nil, exec.Rejected(err)
}

// pull fetches the image unless it is there.
func (c *controller) pull(ctx context.Context, image string) error {
	_, err := c.engine.ImageInspect(ctx, image, engine.ImageInspectOptions{})
	if err == nil || !api.Is(err, api.NotFound) {
		return err
	}
	auth, err := decodeAuth(c.auth)
	if err != nil {
		return exec.Rejected(err)
	}
	err = c.engine.ImagePull(ctx, image, engine.PullOptions{Auth: auth}, nil)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return pullError(image, auth, err)
}

// missing is the error for a container that was removed behind our back.
func (c *controller) missing() error {
	return api.Errorf(api.NotFound, "the container of task %s is gone", c.task.ID)
}

// Start implements exec.Controller.
func (c *controller) Start(ctx context.Context) error {
	id, ok := c.id()
	if !ok {
		return c.missing()
	}
	i, err := c.engine.ContainerInspect(ctx, id, false)
	if err != nil {
		return err
	}
	if i.State.Status == container.StateExited {
		return nil // a task runs once; Wait tells how it ended
	}
	if !i.State.Running {
		if err := c.start(ctx, id); err != nil {
			return err
		}
	}
	c.once.Do(func() { close(c.made) })
	stop := c.testing(ctx, time.Now())
	defer stop()
	health, err := c.engine.AwaitHealthy(ctx, id)
	if err != nil {
		return err
	}
	switch health {
	case container.Unhealthy:
		return errUnhealthy
	case container.Starting: // it ended before its health was known
		return c.ended(ctx, id, false)
	case container.Healthy:
	case container.NoHealthcheck:
		if c.ready == nil {
			if err := c.awaitListening(ctx, id); err != nil {
				return err
			}
		}
	}
	if err := c.awaitReady(ctx, id); err != nil {
		return err
	}
	c.serve(id, true)
	return nil
}

// networks are those of the task.
func (c *controller) networks() []*api.Network {
	var nets []*api.Network
	for _, a := range c.task.Networks {
		if n, ok := c.deps.Network(a.NetworkID); ok {
			nets = append(nets, n)
		}
	}
	return nets
}

// usable rejects a task whose networks this node can't be in.
func (c *controller) usable() error {
	if c.e.cfg.Networks == nil {
		return nil
	}
	release, err := c.e.cfg.Networks.Use(c.networks())
	if err == nil {
		release()
	}
	if api.Is(err, api.Invalid) || api.Is(err, api.Conflict) {
		return exec.Rejected(err)
	}
	return err
}

// start starts the container, in its networks.
func (c *controller) start(ctx context.Context, id string) error {
	nets := c.networks()
	if use := c.e.cfg.Networks; use != nil {
		release, err := use.UseFor(id, nets)
		if err != nil {
			return err
		}
		defer release()
		use.Announce(id, c.task)
	}
	return settled(c.engine.ContainerStart(ctx, id), api.NotModified)
}

// Wait implements exec.Controller.
func (c *controller) Wait(ctx context.Context) error {
	id, ok := c.id()
	if !ok {
		return c.missing()
	}
	ended, err := c.engine.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	if err != nil {
		return err
	}
	sick, stop := await(ctx, id, c.engine.AwaitUnhealthy)
	defer stop()
	var exited <-chan struct{}
	if c.listed() {
		exited, stop = await(ctx, id, c.engine.AwaitExited)
		defer stop()
	}
	if c.ready != nil {
		// It came to run by being ready, under an earlier daemon maybe.
		c.ready.set(func(v verdict) verdict { v.once, v.ready = true, v.ready || !v.known; return v })
	}
	defer c.testing(ctx, time.Time{})()
	unhealthy := false
	for {
		changed := c.serveIfReady(id)
		select {
		case <-changed:
		case <-exited:
			exited = nil
			c.retire(id, errExited)
		case <-ended:
			return c.ended(ctx, id, unhealthy)
		case <-sick:
			sick, unhealthy = nil, true
			c.retire(id, errUnhealthy)
			if err := c.stop(ctx, id); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ended tells how the task ended.
func (c *controller) ended(ctx context.Context, id string, unhealthy bool) error {
	i, err := c.engine.ContainerInspect(ctx, id, false)
	if err != nil {
		return err
	}
	c.dropFiles(ctx, id)
	s := i.State
	why := s.Error
	if s.OOMKilled {
		why = "out of memory"
	}
	if unhealthy || s.Health != nil && s.Health.Status == container.Unhealthy {
		if s.ExitCode == 0 {
			return errUnhealthy
		}
		why = errUnhealthy.Error()
	}
	if s.ExitCode == 0 {
		return nil
	}
	return &exec.ExitError{Code: s.ExitCode, Err: why}
}

// Shutdown implements exec.Controller.
func (c *controller) Shutdown(ctx context.Context) error {
	id, ok := c.id()
	if !ok {
		return nil
	}
	if err := c.drain(ctx, id); err != nil {
		return err
	}
	return c.stop(ctx, id)
}

func (c *controller) stop(ctx context.Context, id string) error {
	if err := settled(c.engine.ContainerStop(ctx, id, engine.StopOptions{}), api.NotModified, api.NotFound); err != nil {
		return err
	}
	c.dropFiles(ctx, id)
	return nil
}

// dropFiles removes the secrets and configs of a task that has ended: it never runs
// again, though its container may stay for a while.
func (c *controller) dropFiles(ctx context.Context, id string) {
	if err := settled(c.engine.ContainerDropFiles(ctx, id), api.NotFound); err != nil && ctx.Err() == nil {
		c.e.cfg.Log.Warn("removing the secrets and configs of an ended task; they go with its container", "task", c.task.ID, "err", err)
	}
}

// Terminate implements exec.Controller.
func (c *controller) Terminate(ctx context.Context) error {
	id, ok := c.id()
	if !ok {
		return nil
	}
	return settled(c.engine.ContainerKill(ctx, id, "KILL"), api.Conflict, api.NotFound)
}

// Remove implements exec.Controller.
func (c *controller) Remove(ctx context.Context) error {
	id, ok := c.id()
	if !ok {
		return nil
	}
	if err := settled(c.engine.ContainerRemove(ctx, id, engine.RemoveOptions{Force: true, Volumes: true}), api.NotFound); err != nil {
		return err
	}
	c.e.remember(c.task.ID, "")
	return nil
}

// Update implements exec.Controller. What a container is made from does not
// change: a new version of a service has new tasks. But a task that was kept on
// disk comes without its registry login, which the managers send again.
func (c *controller) Update(_ context.Context, t *api.Task) error {
	c.auth = t.Spec.RegistryAuth
	return nil
}

// Status implements exec.Controller.
func (c *controller) Status(ctx context.Context) (*swarm.ContainerStatus, *swarm.PortStatus, error) {
	id, ok := c.id()
	if !ok {
		return nil, nil, nil
	}
	i, err := c.engine.ContainerInspect(ctx, id, false)
	if err != nil {
		return nil, nil, settled(err, api.NotFound)
	}
	return &swarm.ContainerStatus{ContainerID: id, PID: i.State.Pid, ExitCode: i.State.ExitCode}, portStatus(i.NetworkSettings.Ports), nil
}

// portStatus are the node's ports that a container has. Where its network is routed it
// has none.
func portStatus(published network.PortMap) *swarm.PortStatus {
	ports := &swarm.PortStatus{}
	for p, list := range published {
		for _, b := range list { // one for each family of addresses
			if h := hostPort(p, b); b.HostPort != "" && !slices.Contains(ports.Ports, h) {
				ports.Ports = append(ports.Ports, h)
			}
		}
	}
	return ports
}

func hostPort(p network.Port, b network.PortBinding) swarm.PortConfig {
	n, _ := strconv.ParseUint(b.HostPort, 10, 16)
	return swarm.PortConfig{
		Protocol: network.IPProtocol(strings.ToLower(string(p.Proto()))), TargetPort: uint32(p.Num()),
		PublishedPort: uint32(n), PublishMode: swarm.PortConfigPublishModeHost,
	}
}

// Logs implements exec.Controller.
func (c *controller) Logs(ctx context.Context, o exec.LogOptions, publish func(exec.LogMessage) error) error {
	id, ok := c.id()
	if !ok {
		return nil
	}
	if o.Follow {
		if err := c.awaitStart(ctx, id); err != nil {
			return err
		}
	}
	_, err := c.engine.ContainerLogs(ctx, id, engine.LogsOptions{
		Stdout: o.Stdout, Stderr: o.Stderr, Follow: o.Follow, Tail: o.Tail, Since: o.Since,
	}, func(m engine.LogMessage) error {
		return publish(exec.LogMessage{Stream: m.Source, At: m.At, Data: m.Line, Attrs: m.Attrs})
	})
	return err
}

// awaitStart waits until there may be output to follow.
func (c *controller) awaitStart(ctx context.Context, id string) error {
	i, err := c.engine.ContainerInspect(ctx, id, false)
	if err != nil {
		return err
	}
	if i.State.Status != container.StateCreated {
		return nil
	}
	select {
	case <-c.made:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close implements exec.Controller.
func (*controller) Close() error { return nil }
