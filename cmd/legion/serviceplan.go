package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/legion-swarm/legion/api"
)

// addPlans adds "service plan" and "stack plan", which are Docker's "service
// update" and "stack deploy" against a client that asks what a change would do, and
// makes none.
func addPlans(root *cobra.Command, docker *command.DockerCli) {
	add := func(parent, doer, short, long string) {
		do, _, err := root.Find([]string{parent, doer})
		if err != nil || do.Name() != doer {
			return
		}
		do.Parent().AddCommand(planCommand(docker, do, short, long))
	}
	add("service", "update", "Show what an update of a service would do", "Show what an update of a service would do: which tasks it would replace, make or end, where the new ones would\ngo, and which nodes can't take them. The options are those of \"service update\". Nothing is changed.")
	add("stack", "deploy", "Show what a deployment of a stack would do", "Show what a deployment of a stack would do to each service. The options are those of \"stack deploy\". Nothing is changed.")
}

// planCommand has the options of the command that would do it.
func planCommand(docker *command.DockerCli, do *cobra.Command, short, long string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: strings.Replace(do.Use, do.Name(), "plan", 1), Short: short, Long: long, Args: cli.ExactArgs(1),
		ValidArgsFunction: do.ValidArgsFunction, DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch format {
			case "", "table", "json":
			default:
				return fmt.Errorf("invalid --format %q: want table or json", format)
			}
			return runPlan(cmd.Context(), docker, do, args, format)
		},
	}
	do.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "detach" && f.Name != "quiet" && f.Name != "rollback" {
			cmd.Flags().AddFlag(f)
		}
	})
	cmd.Flags().StringVar(&format, "format", "", `Format output: "table" or "json"`)
	return cmd
}

func runPlan(ctx context.Context, docker *command.DockerCli, do *cobra.Command, args []string, format string) error {
	p := &planner{APIClient: docker.Client()}
	out := docker.Out()
	if err := errors.Join(command.WithAPIClient(p)(docker), command.WithOutputStream(io.Discard)(docker)); err != nil {
		return err
	}
	if err := do.Flags().Set("detach", "true"); err != nil {
		return err
	}
	do.SetContext(ctx)
	if err := do.RunE(do, args); err != nil {
		return err
	}
	if format == "json" {
		return json.NewEncoder(out).Encode(p.plans)
	}
	return p.write(out)
}

// planner is a client that asks for plans where others make changes.
type planner struct {
	client.APIClient
	plans []api.ServicePlan
	// made are the names of networks, secrets and configs that there would be.
	made []string
	// notes are what else would happen.
	notes []string
}

var _ client.APIClient = (*planner)(nil)

func (p *planner) plan(ctx context.Context, name string, spec swarm.ServiceSpec) error {
	var plan api.ServicePlan
	if err := extension(ctx, p.APIClient, http.MethodPost, servicePath(name, "plan"), nil, p.known(spec), &plan); err != nil {
		return err
	}
	p.plans = append(p.plans, plan)
	return nil
}

// known is the spec without what there is not yet.
func (p *planner) known(s swarm.ServiceSpec) *swarm.ServiceSpec {
	s.TaskTemplate.Networks = slices.DeleteFunc(slices.Clone(s.TaskTemplate.Networks), func(n swarm.NetworkAttachmentConfig) bool {
		return slices.Contains(p.made, "network "+n.Target)
	})
	if c := s.TaskTemplate.ContainerSpec; c != nil {
		n := *c
		n.Secrets = slices.DeleteFunc(slices.Clone(c.Secrets), func(r *swarm.SecretReference) bool {
			return slices.Contains(p.made, "secret "+r.SecretName)
		})
		n.Configs = slices.DeleteFunc(slices.Clone(c.Configs), func(r *swarm.ConfigReference) bool {
			return slices.Contains(p.made, "config "+r.ConfigName)
		})
		s.TaskTemplate.ContainerSpec = &n
	}
	return &s
}

func (p *planner) ServiceUpdate(ctx context.Context, id string, o client.ServiceUpdateOptions) (client.ServiceUpdateResult, error) {
	return client.ServiceUpdateResult{}, p.plan(ctx, id, o.Spec)
}

func (p *planner) ServiceCreate(ctx context.Context, o client.ServiceCreateOptions) (client.ServiceCreateResult, error) {
	return client.ServiceCreateResult{}, p.plan(ctx, o.Spec.Name, o.Spec)
}

func (p *planner) ServiceRemove(ctx context.Context, id string, _ client.ServiceRemoveOptions) (client.ServiceRemoveResult, error) {
	found, err := p.ServiceInspect(ctx, id, client.ServiceInspectOptions{})
	if err == nil {
		p.notes = append(p.notes, "service "+found.Service.Spec.Name+" would be removed")
	}
	return client.ServiceRemoveResult{}, err
}

func (p *planner) make(what, name string) string {
	p.made = append(p.made, what+" "+name)
	p.notes = append(p.notes, what+" "+name+" would be made")
	return "planned-" + name
}

func (p *planner) NetworkCreate(_ context.Context, name string, _ client.NetworkCreateOptions) (client.NetworkCreateResult, error) {
	return client.NetworkCreateResult{ID: p.make("network", name)}, nil
}

func (p *planner) SecretCreate(_ context.Context, o client.SecretCreateOptions) (client.SecretCreateResult, error) {
	return client.SecretCreateResult{ID: p.make("secret", o.Spec.Name)}, nil
}

func (p *planner) ConfigCreate(_ context.Context, o client.ConfigCreateOptions) (client.ConfigCreateResult, error) {
	return client.ConfigCreateResult{ID: p.make("config", o.Spec.Name)}, nil
}

func (p *planner) SecretUpdate(context.Context, string, client.SecretUpdateOptions) (client.SecretUpdateResult, error) {
	return client.SecretUpdateResult{}, nil
}

func (p *planner) ConfigUpdate(context.Context, string, client.ConfigUpdateOptions) (client.ConfigUpdateResult, error) {
	return client.ConfigUpdateResult{}, nil
}

// SecretList has those that there would be too.
func (p *planner) SecretList(ctx context.Context, o client.SecretListOptions) (client.SecretListResult, error) {
	r, err := p.APIClient.SecretList(ctx, o)
	for _, m := range p.made {
		if name, ok := strings.CutPrefix(m, "secret "); ok {
			s := swarm.Secret{ID: "planned-" + name}
			s.Spec.Name = name
			r.Items = append(r.Items, s)
		}
	}
	return r, err
}

// ConfigList has those that there would be too.
func (p *planner) ConfigList(ctx context.Context, o client.ConfigListOptions) (client.ConfigListResult, error) {
	r, err := p.APIClient.ConfigList(ctx, o)
	for _, m := range p.made {
		if name, ok := strings.CutPrefix(m, "config "); ok {
			s := swarm.Config{ID: "planned-" + name}
			s.Spec.Name = name
			r.Items = append(r.Items, s)
		}
	}
	return r, err
}

// NetworkInspect finds only what there is: a network that a plan would make has
// no properties yet.
func (p *planner) NetworkInspect(ctx context.Context, name string, o client.NetworkInspectOptions) (client.NetworkInspectResult, error) {
	if slices.Contains(p.made, "network "+name) {
		return client.NetworkInspectResult{Network: network.Inspect{Network: network.Network{Name: name, ID: "planned-" + name, Scope: "swarm"}}}, nil
	}
	return p.APIClient.NetworkInspect(ctx, name, o)
}

func (p *planner) write(out io.Writer) error {
	for _, n := range p.notes {
		if _, err := fmt.Fprintln(out, n); err != nil {
			return err
		}
	}
	for i := range p.plans {
		if err := writePlan(out, &p.plans[i]); err != nil {
			return err
		}
	}
	return nil
}

func writePlan(to io.Writer, p *api.ServicePlan) error {
	w := tabwriter.NewWriter(to, 0, 0, 3, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush has the error
	line("service %s", p.Name)
	for _, c := range p.Changes {
		line("  %s", c)
	}
	counts := map[api.PlannedAction]int{}
	for _, t := range p.Tasks {
		counts[t.Action]++
	}
	line("%d tasks replaced, %d made, %d ended, %d left as they are", counts[api.PlannedReplace], counts[api.PlannedCreate], counts[api.PlannedEnd], p.Unchanged)
	for _, n := range p.Notes {
		line("%s", n)
	}
	if len(p.Tasks) > 0 {
		line("\nTASK\tACTION\tFROM\tTO\tWHY NOT")
	}
	for _, t := range p.Tasks {
		line("%s\t%s\t%s\t%s\t%s", t.Name, t.Action, t.From, t.To, t.Why)
	}
	if len(p.Refused) > 0 {
		line("\nNODE\tTAKES NONE")
	}
	for _, n := range p.Refused {
		line("%s\t%s", n.Hostname, n.Why)
	}
	return w.Flush()
}
