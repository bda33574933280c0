package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/docker/cli/cli"
	pluginmanager "github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/docker/cli/cli/version"
	"github.com/moby/moby/client"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/legion-swarm/legion/settings"
)

// legionHost is where the local node listens.
const legionHost = "unix://" + settings.DefaultSocket

// runClient runs one client command.
func runClient(ctx context.Context, args []string) error {
	docker, err := command.NewDockerCli(command.WithBaseContext(ctx))
	if err != nil {
		return err
	}
	logrus.SetOutput(docker.Err())

	root, opts := newRoot(docker)
	top := cli.NewTopLevelCommand(root, docker, opts, root.Flags())
	top.SetArgs(args)
	_, rest, err := top.HandleGlobalFlags()
	if err != nil {
		return err
	}
	if err := top.Initialize(); err != nil {
		return err
	}
	plugins := plugins{docker: docker, root: root}
	if len(opts.Hosts) == 0 && os.Getenv(client.EnvOverrideHost) == "" {
		// After Initialize, so that a context of the user's choice comes first:
		// this is what the context "default" means here.
		opts.Hosts = []string{legionHost}
		if docker.CurrentContext() == command.DefaultContextName {
			plugins.host = legionHost
		}
	}
	if asksForCompletion(rest) {
		if err := pluginmanager.AddPluginCommandStubs(docker, root); err != nil {
			return err
		}
	}
	if len(rest) > 0 {
		if found, _, err := root.Find(rest); err != nil || pluginmanager.IsPluginCommand(found) {
			if ran, err := plugins.run(ctx, rest[0]); ran {
				return err
			}
		} else if err := rewriteOutput(docker, found); err != nil {
			return err
		}
	}
	root.SetArgs(rest)
	return root.ExecuteContext(ctx)
}

func asksForCompletion(args []string) bool {
	return slices.Contains(args, cobra.ShellCompRequestCmd) || slices.Contains(args, cobra.ShellCompNoDescRequestCmd)
}

// newRoot returns the tree of all commands: Docker's and Legion's own.
func newRoot(docker *command.DockerCli) (*cobra.Command, *cliflags.ClientOptions) {
	root := &cobra.Command{
		Use:                   "legion [OPTIONS] COMMAND [ARG...]",
		Short:                 "Services on a swarm of machines, by Docker's commands",
		Version:               fmt.Sprintf("%s, build %s", version.Version, version.GitCommit),
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return fmt.Errorf("legion: unknown command: legion %s\n\nRun 'legion --help' for more information", args[0])
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return supported(cmd, docker) },
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd:    true,
			DisableDescriptions: os.Getenv("DOCKER_CLI_DISABLE_COMPLETION_DESCRIPTION") != "",
		},
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(docker.In())
	root.SetOut(docker.Out())
	root.SetErr(docker.Err())
	opts, help := cli.SetupRootCommand(root)
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	_ = root.RegisterFlagCompletionFunc("context", completeContexts(docker))
	_ = root.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(
		[]string{"debug", "info", "warn", "error", "fatal", "panic"}, cobra.ShellCompDirectiveNoFileComp))
	setFlagErrors(docker, root)
	setHelp(docker, root, help)
	commands.AddCommands(root, docker)
	root.AddCommand(newDaemonCommand(), newMachineCommand(docker))
	if services, _, err := root.Find([]string{"service"}); err == nil {
		services.AddCommand(newServiceVerbs(docker)...)
	}
	addVersions(root, docker)
	addNetworkKeys(root, docker)
	addPlans(root, docker)
	brand(root)
	return root, opts
}

// completeContexts offers the names of the contexts that the user has.
func completeContexts(docker *command.DockerCli) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		list, err := docker.ContextStore().List()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		names := make([]string, 0, len(list))
		for _, c := range list {
			names = append(names, strings.TrimSpace(c.Name))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
