package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	pluginmanager "github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// plugins runs Docker's CLI plugins (compose, buildx …) that are installed.
type plugins struct {
	docker *command.DockerCli
	root   *cobra.Command
	host   string // what they shall talk to; empty: what they find themselves
}

// run runs a plugin by the command's name; ran is false when there is none.
func (p plugins) run(ctx context.Context, name string) (ran bool, err error) {
	c, err := pluginmanager.PluginRunCommand(p.docker, name, p.root)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	if p.host != "" {
		c.Env = append(c.Env, client.EnvOverrideHost+"="+p.host)
	}
	if err := c.Start(); err != nil {
		return true, err
	}
	// On a terminal the plugin gets Ctrl-C by itself; a second one would make it
	// give up half-way.
	stop := context.AfterFunc(ctx, func() {
		var t terminated
		if errors.As(context.Cause(ctx), &t) && (t.signal != syscall.SIGINT || !p.docker.In().IsTerminal()) {
			_ = c.Process.Signal(t.signal)
		}
	})
	defer stop()
	err = c.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return true, cli.StatusError{StatusCode: max(exit.ExitCode(), 1)}
	}
	return true, err
}

// help shows a plugin's own help for the arguments; ran is false when none of
// them names one.
func (p plugins) help(args []string) (ran bool, err error) {
	cmd, _, err := p.root.Traverse(args)
	if err != nil || cmd == nil {
		return false, nil //nolint:nilerr // what can't be found has no plugin
	}
	c, err := pluginmanager.PluginRunCommand(p.docker, cmd.Name(), p.root)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return true, c.Run()
}
