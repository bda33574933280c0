package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// addNetworkKeys adds the command that replaces the keys of encrypted networks to
// Docker's "network".
func addNetworkKeys(root *cobra.Command, docker *command.DockerCli) {
	networks, _, err := root.Find([]string{"network"})
	if err != nil {
		return
	}
	networks.AddCommand(&cobra.Command{
		Use: "rotate-keys", Short: "Replace the keys of encrypted networks", Args: cli.NoArgs, DisableFlagsInUseLine: true,
		Long: "Replace the keys of encrypted networks, for all networks of the swarm. The managers do so every twelve hours by\n" +
			"themselves. A minute later no key is accepted any more that was known before; no packet is lost.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := docker.Client().SwarmInspect(cmd.Context(), client.SwarmInspectOptions{})
			if err != nil {
				return err
			}
			query := url.Values{"version": {fmt.Sprint(r.Swarm.Version.Index)}, "rotateNetworkKeys": {"true"}}
			if err := extension(cmd.Context(), docker.Client(), http.MethodPost, "/swarm/update", query, r.Swarm.Spec, nil); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(docker.Out(), "The keys of encrypted networks are being replaced.")
			return nil
		},
	})
}
