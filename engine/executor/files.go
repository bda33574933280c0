package executor

import (
	"context"
	"fmt"
	"strconv"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/templates"
)

// filler makes the files that a task's secrets and configs are.
type filler struct {
	values *templates.Values
	more   templates.Files
}

// files are the secrets and configs that the task refers to, templates filled in.
// cs has its own templates filled in.
func files(ctx context.Context, v *templates.Values, cs *swarm.ContainerSpec, deps exec.Dependencies) ([]engine.File, error) {
	f := &filler{values: v, more: templates.Files{
		Env:    cs.Env,
		Secret: func(name string) (string, bool) { return secretAt(cs, deps, name) },
		Config: func(name string) (string, bool) { return configAt(cs, deps, name) },
	}}
	var list []engine.File
	for _, ref := range cs.Secrets {
		if ref == nil || ref.File == nil {
			continue
		}
		s, ok := deps.Secret(ref.SecretID)
		if !ok {
			return nil, api.Errorf(api.NotFound, "secret %s (%s) was not sent to this node", ref.SecretName, ref.SecretID)
		}
		file, err := f.file(ctx, api.SecretPath(ref.File.Name), (*swarm.ConfigReferenceFileTarget)(ref.File), s.Spec.Data, s.Spec.Templating, api.MaxSecretSize)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", ref.SecretName, err)
		}
		file.Secret = true
		list = append(list, *file)
	}
	for _, ref := range cs.Configs {
		if ref == nil || ref.File == nil {
			continue
		}
		c, ok := deps.Config(ref.ConfigID)
		if !ok {
			return nil, api.Errorf(api.NotFound, "config %s (%s) was not sent to this node", ref.ConfigName, ref.ConfigID)
		}
		file, err := f.file(ctx, api.ConfigPath(ref.File.Name), ref.File, c.Spec.Data, c.Spec.Templating, api.MaxConfigSize)
		if err != nil {
			return nil, fmt.Errorf("config %s: %w", ref.ConfigName, err)
		}
		list = append(list, *file)
	}
	return list, nil
}

func (f *filler) file(ctx context.Context, at string, target *swarm.ConfigReferenceFileTarget, data []byte, templating *swarm.Driver, limit int) (*engine.File, error) {
	out := &engine.File{Path: at, Data: data, Mode: uint32(target.Mode)}
	if templating != nil && templating.Name != "" {
		if templating.Name != templates.Driver {
			return nil, api.Errorf(api.Invalid, "unrecognized template driver %q: want %s", templating.Name, templates.Driver)
		}
		var err error
		if out.Data, err = f.values.Payload(ctx, data, limit, &f.more); err != nil {
			return nil, err
		}
	}
	for _, n := range []struct {
		s  string
		to *int
	}{{target.UID, &out.UID}, {target.GID, &out.GID}} {
		if n.s == "" {
			continue
		}
		v, err := strconv.ParseUint(n.s, 10, 31)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "owner %q of file %s is not a number", n.s, at)
		}
		*n.to = int(v)
	}
	return out, nil
}

// secretAt finds a secret of the task by its target, else by its name.
func secretAt(cs *swarm.ContainerSpec, deps exec.Dependencies, name string) (string, bool) {
	for _, same := range []func(r *swarm.SecretReference) bool{
		func(r *swarm.SecretReference) bool { return r.File.Name == name },
		func(r *swarm.SecretReference) bool { return r.SecretName == name },
	} {
		for _, r := range cs.Secrets {
			if r != nil && r.File != nil && same(r) {
				s, ok := deps.Secret(r.SecretID)
				if !ok {
					return "", false
				}
				return string(s.Spec.Data), true
			}
		}
	}
	return "", false
}

// configAt does so with configs.
func configAt(cs *swarm.ContainerSpec, deps exec.Dependencies, name string) (string, bool) {
	for _, same := range []func(r *swarm.ConfigReference) bool{
		func(r *swarm.ConfigReference) bool { return r.File.Name == name },
		func(r *swarm.ConfigReference) bool { return r.ConfigName == name },
	} {
		for _, r := range cs.Configs {
			if r != nil && r.File != nil && same(r) {
				c, ok := deps.Config(r.ConfigID)
				if !ok {
					return "", false
				}
				return string(c.Spec.Data), true
			}
		}
	}
	return "", false
}
