package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/legion-swarm/legion/machine"
	"github.com/legion-swarm/legion/machine/local"
	"github.com/legion-swarm/legion/machine/ssh"
)

// defaultMachine is meant where no machine is named, as by docker-machine.
const defaultMachine = "default"

// machineCommand is "legion machine": docker-machine's verbs on a fleet.
type machineCommand struct {
	docker *command.DockerCli
	fleet  *machine.Fleet
}

func newMachineCommand(docker *command.DockerCli) *cobra.Command {
	c := &machineCommand{docker: docker}
	cmd := &cobra.Command{
		Use:   "machine COMMAND",
		Short: "Make and manage machines that run nodes",
		Long: "Make and manage machines that run nodes: on this computer (driver local, needs root), or on hosts\n" +
			"reached by ssh. The commands are docker-machine's. Machines are kept in " + machine.DefaultStorageDir + ",\n" +
			"or where MACHINE_STORAGE_PATH says.",
		Args: cli.NoArgs,
		RunE: command.ShowHelp(docker.Err()),
		// The client's own checks ask a daemon, which none of these need.
		PersistentPreRunE: func(*cobra.Command, []string) error { return c.open() },
	}
	cmd.AddCommand(c.create(), c.ls(), c.env(), c.ssh(), c.scp(), c.rm(), c.active(), c.cut("disconnect"), c.cut("connect"))
	cmd.AddCommand(c.prints()...)
	for verb, short := range map[machine.Verb]string{
		machine.VerbStart: "Start machines, with their data", machine.VerbStop: "Shut machines down in order",
		machine.VerbRestart: "Shut machines down and start them", machine.VerbKill: "Cut machines' power",
	} {
		cmd.AddCommand(c.verb(verb, short))
	}
	for _, sub := range cmd.Commands() {
		sub.DisableFlagsInUseLine = true
	}
	return cmd
}

// open makes the fleet, once it is known that a command wants it.
func (c *machineCommand) open() (err error) {
	dir := machine.StorageDir(os.Getenv, os.Geteuid())
	c.fleet, err = machine.New(machine.Config{
		Dir: dir, Progress: c.docker.Err(),
		Drivers: map[string]machine.Driver{local.Name: local.New(dir), ssh.Name: ssh.New()},
	})
	return err
}

// orDefault are the machines named, or "default".
func (c *machineCommand) orDefault(args []string) ([]string, error) {
	if len(args) > 0 {
		return args, nil
	}
	if _, _, err := c.fleet.Machine(defaultMachine); err != nil {
		return nil, errors.New("name a machine: there is none that is called " + defaultMachine)
	}
	return []string{defaultMachine}, nil
}

func (c *machineCommand) verb(v machine.Verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: string(v) + " [MACHINE...]", Short: short, ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := c.orDefault(args)
			if err != nil {
				return err
			}
			return c.fleet.Do(cmd.Context(), v, names)
		},
	}
}

func (c *machineCommand) ls() *cobra.Command {
	var quiet bool
	var filters []string
	var format string
	var timeout int
	cmd := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List machines", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout < 1 {
				return fmt.Errorf("--timeout %d: want at least 1 second", timeout)
			}
			rows, err := c.fleet.List(cmd.Context(), os.Getenv(client.EnvOverrideHost), time.Duration(timeout)*time.Second)
			if err != nil {
				return err
			}
			if rows, err = machine.Filter(rows, filters); err != nil {
				return err
			}
			if quiet {
				format = "{{.Name}}"
			}
			return machine.WriteTable(c.docker.Out(), rows, format)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Only display names")
	f.StringArrayVar(&filters, "filter", nil, `Filter by condition: "driver=", "label=", "name=" (a regular expression), "state=", "swarm="`)
	f.StringVarP(&format, "format", "f", "", "Pretty-print machines using a Go template")
	f.IntVarP(&timeout, "timeout", "t", 10, "Seconds to wait for each machine's answer")
	return cmd
}

// prints are the commands that print one thing about a machine.
func (c *machineCommand) prints() []*cobra.Command {
	one := func(use, short string, say func(cmd *cobra.Command, m *machine.Machine, d machine.Driver) error) *cobra.Command {
		return &cobra.Command{
			Use: use + " [MACHINE...]", Short: short, ValidArgsFunction: c.complete,
			RunE: func(cmd *cobra.Command, args []string) error {
				names, err := c.orDefault(args)
				if err != nil {
					return err
				}
				var errs []error
				for _, n := range names {
					m, d, err := c.fleet.Machine(n)
					if err == nil {
						err = say(cmd, m, d)
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			},
		}
	}
	line := func(s string, err error) error {
		if err == nil {
			_, err = fmt.Fprintln(c.docker.Out(), s)
		}
		return err
	}
	var format string
	inspect := one("inspect", "Show what is kept of a machine", func(_ *cobra.Command, m *machine.Machine, d machine.Driver) error {
		e, err := d.Endpoint(m)
		if err != nil {
			return err
		}
		address, err := d.Address(m)
		if err != nil {
			return err
		}
		return machine.Inspect(c.docker.Out(), m, e, address, format)
	})
	inspect.Flags().StringVarP(&format, "format", "f", "", "Format the output using a Go template")
	return []*cobra.Command{
		inspect,
		one("ip", "Show a machine's address", func(_ *cobra.Command, m *machine.Machine, d machine.Driver) error { return line(d.Address(m)) }),
		one("url", "Show where a machine's API is", func(_ *cobra.Command, m *machine.Machine, d machine.Driver) error {
			e, err := d.Endpoint(m)
			return line(e.URL, err)
		}),
		one("status", "Show whether a machine runs", func(cmd *cobra.Command, m *machine.Machine, d machine.Driver) error {
			s, err := d.State(cmd.Context(), m)
			return line(string(s), err)
		}),
	}
}

func (c *machineCommand) active() *cobra.Command {
	return &cobra.Command{
		Use: "active", Short: "Show which machine the environment points at", Args: cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := c.fleet.Names()
			if err != nil {
				return err
			}
			host := os.Getenv(client.EnvOverrideHost)
			for _, n := range names {
				if m, d, err := c.fleet.Machine(n); err == nil {
					if e, err := d.Endpoint(m); err == nil && e.URL == host {
						_, err := fmt.Fprintln(c.docker.Out(), n)
						return err
					}
				}
			}
			return errors.New("no machine is active: " + client.EnvOverrideHost + " names none (see: legion machine env)")
		},
	}
}

func (c *machineCommand) env() *cobra.Command {
	var shell string
	var unset, noProxy bool
	cmd := &cobra.Command{
		Use: "env [OPTIONS] [MACHINE]", Short: "Print what makes a shell's docker talk to a machine", Args: cli.RequiresMaxArgs(1), ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if shell == "" {
				shell = machine.ShellOf(os.Getenv("SHELL"))
			}
			vars := machine.Unset()
			if !unset {
				var err error
				if vars, err = c.variables(cmd, args, noProxy); err != nil {
					return err
				}
			}
			text, err := machine.Script(shell, vars, strings.Join(append([]string{"legion", "machine"}, envArgs(os.Args)...), " "))
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(c.docker.Out(), text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&shell, "shell", "", "Shell to write for: bash, zsh, fish, csh, tcsh, powershell, cmd, emacs, none (default: $SHELL)")
	_ = cmd.RegisterFlagCompletionFunc("shell", cobra.FixedCompletions(
		[]string{"bash", "zsh", "fish", "csh", "tcsh", "powershell", "cmd", "emacs", "none"}, cobra.ShellCompDirectiveNoFileComp))
	f.BoolVarP(&unset, "unset", "u", false, "Unset the variables instead")
	f.BoolVar(&noProxy, "no-proxy", false, "Add the machine's address to NO_PROXY")
	return cmd
}

// envArgs are the arguments from "env" on, as the user typed them.
func envArgs(args []string) []string {
	for i, a := range args {
		if a == "env" {
			return args[i:]
		}
	}
	return nil
}

func (c *machineCommand) variables(cmd *cobra.Command, args []string, noProxy bool) ([]machine.Variable, error) {
	names, err := c.orDefault(args)
	if err != nil {
		return nil, err
	}
	m, d, err := c.fleet.Machine(names[0])
	if err != nil {
		return nil, err
	}
	if s, err := d.State(cmd.Context(), m); err != nil || s != machine.StateRunning {
		return nil, errors.Join(err, fmt.Errorf("machine %q is not running (start it: legion machine start %s)", m.Name, m.Name))
	}
	e, err := d.Endpoint(m)
	if err != nil {
		return nil, err
	}
	if e.URL == "" {
		return nil, fmt.Errorf("machine %q was made without a daemon", m.Name)
	}
	vars := machine.Variables(m.Name, e, os.Getenv)
	if noProxy {
		address, err := d.Address(m)
		if err != nil {
			return nil, err
		}
		vars = machine.WithoutProxy(vars, address, os.Getenv)
	}
	return vars, nil
}

// complete offers the names of machines.
func (c *machineCommand) complete(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	if err := c.open(); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := c.fleet.Names()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completePlace offers what scp takes: machines, with their colon, or files here.
func (c *machineCommand) completePlace(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	names, failed := c.complete(cmd, args, typed)
	if failed == cobra.ShellCompDirectiveError {
		return nil, failed
	}
	var places []string
	for _, n := range names {
		if strings.HasPrefix(n, typed) {
			places = append(places, n+":")
		}
	}
	return places, cobra.ShellCompDirectiveNoSpace
}
