package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/service"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/legion-swarm/legion/api"
)

// platformName is how a node says that it is Legion.
const platformName = "Legion"

// pollInterval is how often a command that waits for a service asks for it, as
// Docker's own do.
const pollInterval = 200 * time.Millisecond

// serviceVerb changes services' specs in one way, and waits for what comes of it.
type serviceVerb struct {
	docker        command.Cli
	change        func(s *swarm.ServiceSpec)
	detach, quiet bool
}

// newServiceVerbs returns the commands that Docker's "service" does not have.
func newServiceVerbs(docker command.Cli) []*cobra.Command {
	verb := func(name, short, long string, change func(s *swarm.ServiceSpec)) *cobra.Command {
		v := &serviceVerb{docker: docker, change: change}
		cmd := &cobra.Command{
			Use: name + " [OPTIONS] SERVICE [SERVICE...]", Short: short, Long: long, Args: cli.RequiresMinArgs(1), ValidArgsFunction: v.complete,
			RunE:                  func(cmd *cobra.Command, args []string) error { return v.run(cmd.Context(), args) },
			DisableFlagsInUseLine: true,
		}
		f := cmd.Flags()
		f.BoolVarP(&v.detach, "detach", "d", false, "Exit immediately instead of waiting for the service to converge")
		f.BoolVarP(&v.quiet, "quiet", "q", false, "Suppress progress output")
		return cmd
	}
	return []*cobra.Command{
		verb("stop", "Stop one or more services, keeping their scale",
			"End all tasks of one or more services. Their scale, their spec and their history are kept: \"start\" brings them back.\nA job goes on where it was.",
			func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(s.Labels, true) }),
		verb("start", "Start one or more stopped services", "",
			func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(s.Labels, false) }),
		verb("restart", "Restart one or more services",
			"Replace all tasks of one or more services as their update policies have it, like \"update --force\". A job runs again, and a\nservice that is stopped is started.",
			func(s *swarm.ServiceSpec) {
				s.Labels = api.SetStopped(s.Labels, false)
				s.TaskTemplate.ForceUpdate++
			}),
	}
}

// run changes all services, then waits for each.
func (v *serviceVerb) run(ctx context.Context, names []string) error {
	version, err := v.docker.Client().ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return err
	}
	if version.Platform.Name != platformName {
		return fmt.Errorf("the node is %q: services can be stopped, started and restarted on Legion's only", version.Platform.Name)
	}
	var errs []error
	var changed []string
	for _, name := range names {
		if err := v.update(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		changed = append(changed, name)
		_, _ = fmt.Fprintln(v.docker.Out(), name)
	}
	if v.detach {
		changed = nil
	}
	for _, name := range changed {
		if err := v.wait(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (v *serviceVerb) update(ctx context.Context, name string) error {
	c := v.docker.Client()
	found, err := c.ServiceInspect(ctx, name, client.ServiceInspectOptions{})
	if err != nil {
		return err
	}
	s := found.Service
	v.change(&s.Spec)
	r, err := c.ServiceUpdate(ctx, s.ID, client.ServiceUpdateOptions{
		Version: s.Version, Spec: s.Spec, RegistryAuthFrom: swarm.RegistryAuthFromSpec,
	})
	for _, w := range r.Warnings {
		_, _ = fmt.Fprintln(v.docker.Err(), w)
	}
	return err
}

// wait returns when a stopped service has no task left, another when it has
// converged.
func (v *serviceVerb) wait(ctx context.Context, name string) error {
	for {
		found, err := v.docker.Client().ServiceInspect(ctx, name, client.ServiceInspectOptions{})
		if err != nil {
			return err
		}
		if s := (&api.Service{Service: found.Service}); !s.Stopped() {
			return service.WaitOnService(ctx, v.docker, name, v.quiet)
		}
		if st := found.Service.UpdateStatus; st != nil && st.State == swarm.UpdateStateCompleted {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollInterval):
		}
	}
}

// complete offers the names of services that are not named yet, and their ids
// where the user has asked Docker's commands for these.
func (v *serviceVerb) complete(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	list, err := v.docker.Client().ServiceList(cmd.Context(), client.ServiceListOptions{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ids := os.Getenv("DOCKER_COMPLETION_SHOW_SERVICE_IDS") == "yes"
	var names []string
	for _, s := range list.Items {
		names = append(names, s.Spec.Name)
		if ids {
			names = append(names, s.ID)
		}
	}
	return without(names, args), cobra.ShellCompDirectiveNoFileComp
}

func without(all, named []string) []string {
	seen := map[string]bool{}
	for _, n := range named {
		seen[n] = true
	}
	var out []string
	for _, n := range all {
		if !seen[n] {
			out = append(out, n)
		}
	}
	return out
}
