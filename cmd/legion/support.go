package main

import (
	"errors"
	"fmt"

	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client/pkg/versions"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// requirement is what an annotation on a command or a flag asks of the daemon.
// met and refusal ask the daemon, so they are called only for annotations that
// are there: most commands and flags need no extra round trip.
type requirement struct {
	annotation string
	met        func(d *command.DockerCli, value string) bool
	refusal    func(d *command.DockerCli, value string) string
}

func requirements() []requirement {
	return []requirement{{
		annotation: "version",
		met: func(d *command.DockerCli, v string) bool {
			return v == "" || versions.GreaterThanOrEqualTo(d.CurrentVersion(), v)
		},
		refusal: func(d *command.DockerCli, v string) string {
			return fmt.Sprintf("requires API version %s, but the daemon's API version is %s", v, d.CurrentVersion())
		},
	}, {
		annotation: "ostype",
		met: func(d *command.DockerCli, v string) bool {
			os := d.ServerInfo().OSType
			return v == "" || os == "" || os == v
		},
		refusal: func(d *command.DockerCli, v string) string {
			return fmt.Sprintf("is only supported by a daemon on %s, but the daemon runs on %s", v, d.ServerInfo().OSType)
		},
	}, {
		annotation: "experimental",
		met:        func(d *command.DockerCli, _ string) bool { return d.ServerInfo().HasExperimental },
		refusal: func(*command.DockerCli, string) string {
			return "is only supported by a daemon with experimental features enabled"
		},
	}}
}

// supported refuses a command, or flags given to it, that the daemon is too old
// for.
func supported(cmd *cobra.Command, docker *command.DockerCli) error {
	for c := cmd; c != nil; c = c.Parent() {
		for _, r := range requirements() {
			if v, ok := c.Annotations[r.annotation]; ok && !r.met(docker, v) {
				return fmt.Errorf("%s %s", cmd.CommandPath(), r.refusal(docker, v))
			}
		}
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Changed {
			return
		}
		for _, r := range requirements() {
			values, ok := f.Annotations[r.annotation]
			v := ""
			if len(values) == 1 {
				v = values[0]
			}
			if ok && !r.met(docker, v) {
				errs = append(errs, fmt.Errorf("%q %s", "--"+f.Name, r.refusal(docker, v)))
			}
		}
	})
	return errors.Join(errs...)
}

// setFlagErrors says of an unknown flag that its command is unsupported, where
// it is.
func setFlagErrors(docker *command.DockerCli, root *cobra.Command) {
	next := root.FlagErrorFunc()
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if unsupported := supported(cmd, docker); unsupported != nil {
			return unsupported
		}
		return next(cmd, err)
	})
}
