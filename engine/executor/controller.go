package executor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// controller runs one task.
type controller struct {
	task *api.Task

	e      *Executor
	engine *engine.Engine
	deps   exec.Dependencies
	once   sync.Once
	made   chan struct{} // closed when the container was started here
}

// errUnhealthy is Docker's words for it.
var errUnhealthy = errors.New("unhealthy container")

// id of the task's container.
func (c *controller) id() (string, bool) { return c.e.container(c.task.ID) }

// Prepare implements exec.Controller.
func (c *controller) Prepare(ctx context.Context) error {
	if _, ok := c.id(); ok {
		return nil
	}
	o, err := options(c.task, c.deps, c.engine.Hostname(), c.engine.Platform())
	if err != nil {
		return exec.Rejected(err)
	}
	if n := c.e.node(); n != nil && o.Config.Labels[labelNodeID] == "" {
		o.Config.Labels[labelNodeID] = n.ID
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

// pull fetches the image unless it is there.
func (c *controller) pull(ctx context.Context, image string) error {
	_, err := c.engine.ImageInspect(ctx, image, engine.ImageInspectOptions{})
	if err == nil || !api.Is(err, api.NotFound) {
		return err
	}
	auth, err := decodeAuth(c.task.Spec.RegistryAuth)
	if err != nil {
		return exec.Rejected(err)
	}
	if err := c.engine.ImagePull(ctx, image, engine.PullOptions{Auth: auth}, nil); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return api.Errorf(api.NotFound, "No such image: %s: it is not on this node, and could not be pulled: %w", image, err)
	}
	return nil
}

// decodeAuth reads what came in an X-Registry-Auth header.
func decodeAuth(s string) (*registry.AuthConfig, error) {
	if s == "" {
		return nil, nil
	}
	b, err := base64.URLEncoding.DecodeString(s)
	if err != nil {
		if b, err = base64.StdEncoding.DecodeString(s); err != nil {
			return nil, api.Errorf(api.Invalid, "the registry login of the service is not base64: %w", err)
		}
	}
	a := &registry.AuthConfig{}
	if err := json.Unmarshal(b, a); err != nil {
		return nil, api.Errorf(api.Invalid, "the registry login of the service is malformed: %w", err)
	}
	return a, nil
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
	health, err := c.engine.AwaitHealthy(ctx, id)
	if err != nil {
		return err
	}
	switch health {
	case container.Unhealthy:
		return errUnhealthy
	case container.Starting: // it ended before its health was known
		return c.ended(ctx, id, false)
	case container.Healthy, container.NoHealthcheck:
	}
	return nil
}

// start starts the container, in its networks.
func (c *controller) start(ctx context.Context, id string) error {
	var nets []*api.Network
	for _, a := range c.task.Networks {
		if n, ok := c.deps.Network(a.NetworkID); ok {
			nets = append(nets, n)
		}
	}
	if use := c.e.cfg.Networks; use != nil {
		release, err := use.Use(nets)
		if err != nil {
			return err
		}
		defer release()
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
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	sick := make(chan struct{})
	go func() {
		if c.engine.AwaitUnhealthy(watch, id) == nil {
			close(sick)
		}
	}()
	unhealthy := false
	for {
		select {
		case <-ended:
			return c.ended(ctx, id, unhealthy)
		case <-sick:
			sick, unhealthy = nil, true
			if err := c.Shutdown(ctx); err != nil {
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
	return settled(c.engine.ContainerStop(ctx, id, engine.StopOptions{}), api.NotModified, api.NotFound)
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
// change: a new version of a service has new tasks.
func (c *controller) Update(context.Context, *api.Task) error { return nil }

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
	ports := &swarm.PortStatus{}
	for p, list := range i.NetworkSettings.Ports {
		for _, b := range list { // one for each family of addresses
			if h := hostPort(p, b); !slices.Contains(ports.Ports, h) {
				ports.Ports = append(ports.Ports, h)
			}
		}
	}
	return &swarm.ContainerStatus{ContainerID: id, PID: i.State.Pid, ExitCode: i.State.ExitCode}, ports, nil
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
func (c *controller) Close() error { return nil }
