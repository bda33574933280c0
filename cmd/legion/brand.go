package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	pluginmanager "github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// sayLegion makes a text of Docker's CLI name the command that was typed.
func sayLegion(text string) string {
	return strings.NewReplacer(
		`"docker `, `"legion `, "'docker ", "'legion ", "`docker ", "`legion ",
		"    docker swarm ", "    legion swarm ",
		"failed to connect to the docker API at", "failed to connect to the Legion API at",
		"if the daemon is running:", "if the daemon is running (legion daemon):",
	).Replace(text)
}

// brand makes the help texts speak of Legion where they mean this program.
// Docker's names for its file formats and its registry stay.
func brand(root *cobra.Command) {
	root.SetVersionTemplate("Legion version {{.Version}}\n")
	root.Annotations["additionalHelp"] = "Every command and flag is Docker's: https://docs.docker.com/reference/cli/docker/"
	texts := strings.NewReplacer("Show the Docker version", "Show the Legion version", "Manage Docker\n", "Manage Legion\n",
		"Docker objects", "Legion objects", "Show docker disk usage", "Show disk usage", "docker context ", "legion context ",
		"docker cp ", "legion cp ")
	visit(root, func(c *cobra.Command) {
		c.Short = strings.TrimSuffix(texts.Replace(c.Short+"\n"), "\n")
		c.Long, c.Use = texts.Replace(c.Long), texts.Replace(c.Use)
		if a, ok := c.Annotations["aliases"]; ok {
			c.Annotations["aliases"] = strings.ReplaceAll(a, "docker ", "legion ")
		}
	})
}

func visit(c *cobra.Command, do func(*cobra.Command)) {
	for _, sub := range c.Commands() {
		visit(sub, do)
	}
	do(c)
}

// setHelp shows plugins among the commands and their own help when asked.
func setHelp(docker *command.DockerCli, root, help *cobra.Command) {
	p := plugins{docker: docker, root: root}
	show := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if err := pluginmanager.AddPluginCommandStubs(docker, root); err != nil {
			cmd.Println(err)
			return
		}
		if len(args) > 0 {
			if ran, err := p.help(args); ran {
				if err != nil {
					cmd.Println(err)
				}
				return
			}
		}
		show(cmd, args)
	})
	byName := help.RunE
	help.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			if ran, err := p.help(args); ran {
				return err
			}
		}
		if err := byName(cmd, args); err != nil {
			return fmt.Errorf("unknown help topic: %v", strings.Join(args, " "))
		}
		return nil
	}
}

// rewriteOutput changes the few commands that print a command to type.
func rewriteOutput(docker *command.DockerCli, cmd *cobra.Command) error {
	if !slices.Contains([]string{"legion swarm init", "legion swarm join-token", "legion swarm unlock-key"}, cmd.CommandPath()) {
		return nil
	}
	return command.WithOutputStream(&legionWriter{to: docker.Out()})(docker)
}

// legionWriter passes whole lines on, changed by sayLegion. The commands that
// it is used for end their output with a newline.
type legionWriter struct {
	to   io.Writer
	part bytes.Buffer
}

func (w *legionWriter) Write(b []byte) (int, error) {
	w.part.Write(b)
	i := bytes.LastIndexByte(w.part.Bytes(), '\n')
	if i < 0 {
		return len(b), nil
	}
	_, err := io.WriteString(w.to, sayLegion(string(w.part.Next(i+1))))
	return len(b), err
}
