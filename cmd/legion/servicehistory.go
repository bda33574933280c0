package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/cli/command/service"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/legion-swarm/legion/api"
)

// addVersions adds the commands about a service's versions to Docker's "service",
// and the flag --to to its rollback.
func addVersions(root *cobra.Command, docker *command.DockerCli) {
	services, _, err := root.Find([]string{"service"})
	if err != nil {
		return
	}
	v := &serviceVersions{docker: docker}
	services.AddCommand(v.history(), v.promote())
	if rollback, _, err := root.Find([]string{"service", "rollback"}); err == nil && rollback != services {
		v.rollbackTo(rollback)
	}
}

type serviceVersions struct{ docker *command.DockerCli }

func servicePath(name, what string) string { return "/services/" + url.PathEscape(name) + "/" + what }

func (v *serviceVersions) history() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use: "history [OPTIONS] SERVICE", Short: "Show the versions of a service", Args: cli.ExactArgs(1), DisableFlagsInUseLine: true,
		Long: "Show the versions of a service that are kept, newest first, and what each changed. The label legion.history says\nhow many earlier ones are kept (default 10). \"rollback --to\" brings one back.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []api.VersionInfo
			if err := extension(cmd.Context(), v.docker.Client(), http.MethodGet, servicePath(args[0], "history"), nil, nil, &list); err != nil {
				return err
			}
			return v.show(list, format, quiet)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Only display version numbers")
	f.StringVar(&format, "format", "", `Format output: "table", "json", or a Go template with .Version .Created .Image .Changes .Current`)
	return cmd
}

// versionRow is a version as templates see it.
type versionRow struct {
	formatter.HeaderContext `json:"-"`
	Version                 uint64
	Created                 string
	Image                   string
	Changes                 string
	Current                 bool
}

var _ formatter.SubContext = (*versionRow)(nil)

func (v *serviceVersions) show(list []api.VersionInfo, format string, quiet bool) error {
	switch {
	case format == "json":
		for i := range list {
			list[i].Spec = nil
			if err := json.NewEncoder(v.docker.Out()).Encode(&list[i]); err != nil {
				return err
			}
		}
		return nil
	case quiet:
		format = "{{.Version}}"
	case format == "" || format == "table":
		format = "table {{.Version}}{{if .Current}} *{{end}}\t{{.Created}}\t{{.Image}}\t{{.Changes}}"
	}
	out := formatter.Context{Output: v.docker.Out(), Format: formatter.Format(format)}
	header := &versionRow{}
	header.Header = formatter.SubHeaderContext{"Version": "VERSION", "Created": "CREATED", "Image": "IMAGE", "Changes": "CHANGES", "Current": ""}
	return out.Write(header, func(write func(formatter.SubContext) error) error {
		for _, i := range list {
			row := &versionRow{
				Version: i.Number, Image: i.Image, Current: i.Current, Changes: strings.Join(i.Changes, ", "),
				Created: units.HumanDuration(time.Since(i.Since)) + " ago",
			}
			if err := write(row); err != nil {
				return err
			}
		}
		return nil
	})
}

func (v *serviceVersions) promote() *cobra.Command {
	return &cobra.Command{
		Use: "promote SERVICE [SERVICE...]", Short: "Let updates go on after their canaries", Args: cli.RequiresMinArgs(1), DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := extension(cmd.Context(), v.docker.Client(), http.MethodPost, servicePath(name, "promote"), nil, nil, nil); err != nil {
					return err
				}
				_, _ = fmt.Fprintln(v.docker.Out(), name)
			}
			return nil
		},
	}
}

// rollbackTo adds --to to Docker's command.
func (v *serviceVersions) rollbackTo(cmd *cobra.Command) {
	var to uint64
	cmd.Flags().Uint64Var(&to, "to", 0, "Go back to this version (see: legion service history)")
	previous := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("to") {
			return previous(cmd, args)
		}
		detach, err := cmd.Flags().GetBool("detach")
		if err != nil {
			return err
		}
		quiet, err := cmd.Flags().GetBool("quiet")
		if err != nil {
			return err
		}
		return v.rollback(cmd.Context(), args[0], to, detach, quiet)
	}
}

func (v *serviceVersions) rollback(ctx context.Context, name string, to uint64, detach, quiet bool) error {
	query := url.Values{"to": {strconv.FormatUint(to, 10)}}
	if err := extension(ctx, v.docker.Client(), http.MethodPost, servicePath(name, "rollback"), query, nil, nil); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(v.docker.Out(), name)
	if detach {
		return nil
	}
	return service.WaitOnService(ctx, v.docker, name, quiet)
}
