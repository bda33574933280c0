package engine

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

// ContainerProbe runs a test in a running container as a health check is run. test
// is in Docker's form: CMD and a command, or CMD-SHELL and a line for the
// container's shell. A test that takes longer than timeout is killed and has
// failed. Conflict: the container does not run, or ended meanwhile.
func (e *Engine) ContainerProbe(ctx context.Context, name string, test []string, timeout time.Duration) (*container.HealthcheckResult, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	if _, err := c.running(); err != nil {
		return nil, err
	}
	cfg := *c.snapshot().Config
	cfg.Healthcheck = &container.HealthConfig{Test: test, Timeout: timeout}
	p := planProbe(&cfg)
	if p == nil || len(p.args) == 0 {
		return nil, api.Errorf(api.Invalid, "a test of a container has no command: %q", test)
	}
	res := c.probe(ctx, p)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case res == nil:
		return nil, api.Errorf(api.Conflict, "container %s ended while it was tested", c.id)
	}
	return res, nil
}

// ContainerDropFiles removes the files that the container was given by value, when
// it does not run: it can't be started again. Conflict: it runs.
func (e *Engine) ContainerDropFiles(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if len(c.snapshot().Files) == 0 {
		return nil
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	c.mu.Lock()
	runs := c.run != nil
	c.mu.Unlock()
	if runs {
		return api.Errorf(api.Conflict, "container %s runs and needs its files", c.id)
	}
	return e.removeFiles(c.id)
}
