package templates

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// CheckService expands a service's templates for a task that could be, and
// returns what its containers would be made from. Invalid, with the field named:
// a template is bad.
func CheckService(ctx context.Context, s *swarm.ServiceSpec) (*swarm.TaskSpec, error) {
	return example(s).Expand(ctx, &s.TaskTemplate, nil)
}

// Expand returns a task's spec with its templates filled in; env is more for its
// environment. It shares with the given one what did not change. Those that
// Docker has too: host name, environment, mounts. Ours: command, arguments, the
// container's labels, options of logging. Invalid, with the field named: a
// template is bad. The error is the context's if it ended.
func (v *Values) Expand(ctx context.Context, in *swarm.TaskSpec, env []string) (*swarm.TaskSpec, error) {
	e := &expansion{ctx: ctx, values: v}
	t := *in
	if in.ContainerSpec == nil {
		return &t, nil
	}
	c := *in.ContainerSpec
	t.ContainerSpec = &c
	var err error
	if c.Hostname, err = e.text("ContainerSpec.Hostname", c.Hostname); err != nil {
		return nil, err
	}
	if c.Env, err = each(append(slices.Clip(c.Env), env...), numbered("ContainerSpec.Env"), e.variable); err != nil {
		return nil, err
	}
	if c.Mounts, err = e.mounts(c.Mounts); err != nil {
		return nil, err
	}
	if v.Service.Labels[api.TemplatesLabel] == api.TemplatesDocker {
		return &t, nil
	}
	if c.Command, err = each(c.Command, numbered("ContainerSpec.Command"), e.ours); err != nil {
		return nil, err
	}
	if c.Args, err = each(c.Args, numbered("ContainerSpec.Args"), e.ours); err != nil {
		return nil, err
	}
	if c.Labels, err = values(c.Labels, "ContainerSpec.Labels", e.ours); err != nil {
		return nil, err
	}
	if l := in.LogDriver; l != nil {
		n := *l
		t.LogDriver = &n
		if n.Options, err = values(l.Options, "LogDriver.Options", e.ours); err != nil {
			return nil, err
		}
	}
	return &t, nil
}

func numbered(field string) func(int) string {
	return func(i int) string { return field + "[" + strconv.Itoa(i) + "]" }
}

// variable fills in the value of a variable, as Docker does.
func (e *expansion) variable(field, text string) (string, error) {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return text, nil
	}
	value, err := e.text(field+" ("+name+")", value)
	return name + "=" + value, err
}

func (e *expansion) mounts(in []mount.Mount) ([]mount.Mount, error) {
	out := slices.Clone(in)
	for i := range out {
		m, field := &out[i], numbered("ContainerSpec.Mounts")(i)
		var err error
		if m.Source, err = e.text(field+".Source", m.Source); err != nil {
			return nil, err
		}
		if m.Target, err = e.text(field+".Target", m.Target); err != nil {
			return nil, err
		}
		if m.VolumeOptions == nil {
			continue
		}
		o := *m.VolumeOptions
		m.VolumeOptions = &o
		if o.Labels, err = values(o.Labels, field+".VolumeOptions.Labels", e.text); err != nil {
			return nil, err
		}
		if o.DriverConfig == nil {
			continue
		}
		d := *o.DriverConfig
		o.DriverConfig = &d
		if d.Options, err = values(d.Options, field+".VolumeOptions.DriverConfig.Options", e.text); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Networks returns a task's attachments with the templates in aliases and
// drivers' options filled in.
func (v *Values) Networks(ctx context.Context, in []api.NetworkAttachment) ([]api.NetworkAttachment, error) {
	e := &expansion{ctx: ctx, values: v}
	out := slices.Clone(in)
	for i := range out {
		field := numbered("Networks")(i)
		var err error
		if out[i].Aliases, err = each(out[i].Aliases, numbered(field+".Aliases"), e.text); err != nil {
			return nil, err
		}
		if out[i].DriverOpts, err = values(out[i].DriverOpts, field+".DriverOpts", e.text); err != nil {
			return nil, err
		}
	}
	return out, nil
}
