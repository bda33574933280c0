package exectest

import (
	"context"
	"fmt"
	"strconv"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

type controller struct {
	fake *Fake
	task *api.Task
}

var _ exec.Controller = (*controller)(nil)

func (c *controller) container() *container {
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	return c.fake.containers[c.task.ID]
}

func (c *controller) Prepare(ctx context.Context) error {
	if c.container() != nil {
		return nil
	}
	s := c.fake.script(c.task)
	if s.Prepare != nil {
		if err := s.Prepare(ctx); err != nil {
			return err
		}
	}
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	c.fake.next++
	c.fake.containers[c.task.ID] = &container{
		id: "container" + strconv.Itoa(c.fake.next), script: s, ended: make(chan struct{}), more: make(chan struct{}),
	}
	return nil
}

func (c *controller) Start(ctx context.Context) error {
	k := c.container()
	if k == nil {
		return fmt.Errorf("task %s: no such container", c.task.ID)
	}
	c.fake.mu.Lock()
	first := !k.started
	c.fake.mu.Unlock()
	if !first {
		return nil
	}
	if k.script.Start != nil {
		if err := k.script.Start(ctx); err != nil {
			return err
		}
	}
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	k.started, k.pid = true, 1000+c.fake.next
	c.fake.next++
	c.fake.starts[c.task.ID]++
	for _, line := range k.script.Lines {
		k.print(line)
	}
	if k.script.Exits {
		k.exit(k.script.Code)
	}
	return nil
}

func (c *controller) Wait(ctx context.Context) error {
	k := c.container()
	if k == nil {
		return fmt.Errorf("task %s: no such container", c.task.ID)
	}
	select {
	case <-k.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	if k.code != 0 {
		return &exec.ExitError{Code: k.code}
	}
	return nil
}

func (c *controller) Shutdown(context.Context) error { return c.stop(0) }

func (c *controller) Terminate(context.Context) error { return c.stop(137) }

func (c *controller) stop(code int) error {
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	if k := c.fake.containers[c.task.ID]; k != nil && k.running() {
		k.exit(code)
	}
	return nil
}

func (c *controller) Remove(context.Context) error {
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	delete(c.fake.containers, c.task.ID)
	return nil
}

func (c *controller) Update(context.Context, *api.Task) error { return nil }

func (c *controller) Status(context.Context) (*swarm.ContainerStatus, *swarm.PortStatus, error) {
	k := c.container()
	if k == nil {
		return nil, nil, nil
	}
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	s := &swarm.ContainerStatus{ContainerID: k.id, ExitCode: k.code}
	if k.running() {
		s.PID = k.pid
	}
	return s, nil, nil
}

func (c *controller) Logs(ctx context.Context, o exec.LogOptions, publish func(exec.LogMessage) error) error {
	k := c.container()
	if k == nil {
		return nil
	}
	if k.script.LogsErr != nil {
		return k.script.LogsErr
	}
	at := 0
	if o.Tail >= 0 {
		c.fake.mu.Lock()
		at = max(0, len(k.lines)-o.Tail)
		c.fake.mu.Unlock()
	}
	for {
		c.fake.mu.Lock()
		lines, more := k.lines[min(at, len(k.lines)):], k.more
		running := k.running() || !k.started
		c.fake.mu.Unlock()
		at += len(lines)
		for _, l := range lines {
			if !o.Stdout || l.At.Before(o.Since) {
				continue
			}
			if err := publish(l); err != nil {
				return err
			}
		}
		if !o.Follow || !running {
			return nil
		}
		select {
		case <-more:
		case <-k.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *controller) Close() error { return nil }
