package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/legion-swarm/legion/machine"
	"github.com/legion-swarm/legion/machine/local"
	"github.com/legion-swarm/legion/machine/ssh"
)

// create has docker-machine's engine flags, and each driver's own.
func (c *machineCommand) create() *cobra.Command {
	var driver string
	var onSSH ssh.Options
	var onLocal local.Options
	var engine struct{ opts, env, labels, insecure, mirrors []string }
	cmd := &cobra.Command{
		Use: "create [OPTIONS] MACHINE [MACHINE...]", Short: "Create machines", Args: cli.RequiresMinArgs(1),
		Long: "Create machines, several at once, and start them. One that can't be finished is removed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			s := machine.Spec{Driver: driver, Engine: machine.Engine{Env: engine.env}}
			switch driver {
			case local.Name:
				s.Options = onLocal
			case ssh.Name:
				if onSSH.Key != "" {
					key, err := filepath.Abs(onSSH.Key)
					if err != nil {
						return err
					}
					onSSH.Key = key
				}
				s.Options = onSSH
			}
			for flag, values := range map[string][]string{"label": engine.labels, "insecure-registry": engine.insecure, "registry-mirror": engine.mirrors} {
				for _, v := range values {
					s.Engine.Flags = append(s.Engine.Flags, "--"+flag+"="+v)
				}
			}
			for _, o := range engine.opts {
				s.Engine.Flags = append(s.Engine.Flags, "--"+strings.TrimLeft(o, "-"))
			}
			for _, e := range engine.env {
				if n, _, ok := strings.Cut(e, "="); !ok || n == "" {
					return fmt.Errorf("--engine-env %q: want NAME=VALUE", e)
				}
			}
			return c.fleet.Create(cmd.Context(), args, s)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&driver, "driver", "d", local.Name, "Driver to create machines with")
	_ = cmd.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions([]string{local.Name, ssh.Name}, cobra.ShellCompDirectiveNoFileComp))
	f.StringArrayVar(&engine.opts, "engine-opt", nil, "Flags of the daemon, as flag=value")
	f.StringArrayVar(&engine.env, "engine-env", nil, "Environment variables of the daemon")
	f.StringArrayVar(&engine.labels, "engine-label", nil, "Labels of the daemon")
	f.StringArrayVar(&engine.insecure, "engine-insecure-registry", nil, "Registries to use without TLS")
	f.StringArrayVar(&engine.mirrors, "engine-registry-mirror", nil, "Registry mirrors to use")
	f.BoolVar(&onLocal.Bare, "local-bare", false, "Driver local: a machine without a daemon, for trying other things")
	f.StringVar(&onSSH.Host, "ssh-host", "", "Driver ssh: the host's name or address")
	f.StringVar(&onSSH.User, "ssh-user", ssh.DefaultUser, "Driver ssh: who to log in as: root, or who may use sudo without a password")
	f.StringVar(&onSSH.Key, "ssh-key", "", "Driver ssh: private key file (default: what ssh finds)")
	f.IntVar(&onSSH.Port, "ssh-port", ssh.DefaultPort, "Driver ssh: port of the host's ssh")
	f.IntVar(&onSSH.APIPort, "ssh-engine-port", ssh.DefaultAPIPort, "Driver ssh: port for the daemon's API, with TLS")
	return cmd
}

func (c *machineCommand) ssh() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ssh MACHINE [COMMAND [ARG...]]", Short: "Run a shell or a command in a machine", Args: cobra.ArbitraryArgs,
		ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			var name []string
			if len(args) > 0 {
				name, args = args[:1], args[1:]
			}
			if len(args) > 0 && args[0] == "--" {
				args = args[1:]
			}
			names, err := c.orDefault(name)
			if err != nil {
				return err
			}
			m, d, err := c.fleet.Machine(names[0])
			if err != nil {
				return err
			}
			status, err := d.Run(cmd.Context(), m, machine.Command{Line: strings.Join(args, " "), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
			if err == nil && status != 0 {
				err = cli.StatusError{StatusCode: status}
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false) // the command's flags are its own
	return cmd
}

func (c *machineCommand) scp() *cobra.Command {
	var recursive, quiet bool
	cmd := &cobra.Command{
		Use: "scp [OPTIONS] [MACHINE:]PATH [MACHINE:]PATH", Short: "Copy files between machines and this one", Args: cli.ExactArgs(2),
		ValidArgsFunction: c.completePlace,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.fleet.Copy(cmd.Context(), args[0], args[1], recursive)
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "Copy folders with all that is in them")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Say nothing (always so)")
	return cmd
}

func (c *machineCommand) rm() *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use: "rm [OPTIONS] MACHINE [MACHINE...]", Short: "Remove machines with all their data", Args: cli.RequiresMinArgs(1), ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !force && !yes {
				if err := c.confirm(args); err != nil {
					return err
				}
			}
			return c.fleet.Remove(cmd.Context(), args, force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Don't ask, and forget a machine even if it can't be removed or is not there")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "Don't ask")
	return cmd
}

func (c *machineCommand) confirm(names []string) error {
	if !c.docker.In().IsTerminal() {
		return errors.New("removing machines takes their data with them: say -y or -f")
	}
	_, _ = fmt.Fprintf(c.docker.Out(), "About to remove %s, with all data.\nAre you sure? (y/n): ", strings.Join(names, ", "))
	answer, err := bufio.NewReader(c.docker.In()).ReadString('\n')
	if err != nil {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing is removed")
	}
	return nil
}

// cut is disconnect or connect.
func (c *machineCommand) cut(verb string) *cobra.Command {
	var others []string
	cmd := &cobra.Command{Use: verb + " [OPTIONS] MACHINE [MACHINE...]", Args: cli.RequiresMinArgs(1), ValidArgsFunction: c.complete}
	if verb == "disconnect" {
		cmd.Short = "Cut machines off the network, silently, for trying failures"
		cmd.Flags().StringSliceVar(&others, "from", nil, "Only from these machines (default: from everything)")
		_ = cmd.RegisterFlagCompletionFunc("from", c.complete)
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			return c.fleet.Disconnect(cmd.Context(), args, others)
		}
		return cmd
	}
	cmd.Short = "Undo disconnect"
	cmd.Flags().StringSliceVar(&others, "to", nil, "Only to these machines (default: to everything)")
	cmd.Flags().StringSliceVar(&others, "from", nil, "The same as --to")
	_ = cmd.RegisterFlagCompletionFunc("to", c.complete)
	_ = cmd.RegisterFlagCompletionFunc("from", c.complete)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.fleet.Connect(cmd.Context(), args, others)
	}
	return cmd
}
