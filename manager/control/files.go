package control

import (
	"context"
	"fmt"
	"strconv"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/templates"
)

// target is a file that a service gives to its containers.
type target struct{ kind, name, file string }

// validateFiles checks references to secrets and configs by themselves.
func validateFiles(c *swarm.ContainerSpec) error {
	taken := map[string]target{}
	for _, s := range c.Secrets {
		if s == nil || s.SecretID == "" || s.SecretName == "" {
			return invalid("malformed secret reference: it needs an id and a name")
		}
		if s.File == nil || s.File.Name == "" {
			return invalid("malformed secret reference %s, no target provided", s.SecretName)
		}
		t := target{"secret", s.SecretName, s.File.Name}
		if err := t.validate((*swarm.ConfigReferenceFileTarget)(s.File), api.SecretPath(s.File.Name), taken); err != nil {
			return err
		}
	}
	for _, r := range c.Configs {
		if r == nil || r.ConfigID == "" || r.ConfigName == "" {
			return invalid("malformed config reference: it needs an id and a name")
		}
		switch {
		case r.File == nil && r.Runtime == nil:
			return invalid("malformed config reference %s, no target provided", r.ConfigName)
		case r.File != nil && r.Runtime != nil:
			return invalid("malformed config reference %s: it can't be both a file and for the runtime", r.ConfigName)
		case r.File == nil:
			continue
		case r.File.Name == "":
			return invalid("malformed config reference %s, no target provided", r.ConfigName)
		}
		t := target{"config", r.ConfigName, r.File.Name}
		if err := t.validate(r.File, api.ConfigPath(r.File.Name), taken); err != nil {
			return err
		}
	}
	return nil
}

// validate checks one file, and that no other is at the same place.
func (t target) validate(f *swarm.ConfigReferenceFileTarget, at string, taken map[string]target) error {
	switch other, is := taken[at]; {
	case is && other.kind == t.kind:
		return invalid("%s references '%s' and '%s' have a conflicting target: '%s'", t.kind, other.name, t.name, t.file)
	case is:
		return invalid("%s '%s' and %s '%s' have a conflicting target: '%s'", other.kind, other.name, t.kind, t.name, at)
	case at == "/":
		return invalid("%s '%s': its target '%s' is not a file", t.kind, t.name, t.file)
	}
	taken[at] = t
	for what, id := range map[string]string{"uid": f.UID, "gid": f.GID} {
		if _, err := strconv.ParseUint(id, 10, 31); id != "" && err != nil {
			return invalid("%s '%s': %s %q is not a number from 0 to 2147483647", t.kind, t.name, what, id)
		}
	}
	if f.Mode&^0o7777 != 0 {
		return invalid("%s '%s': mode %#o is not that of a file, such as 0444", t.kind, t.name, uint32(f.Mode))
	}
	return nil
}

// validateCredentials checks a credential spec. Linux nodes refuse it; a node that
// runs Windows may take it.
func validateCredentials(c *swarm.ContainerSpec) error {
	if c.Privileges == nil || c.Privileges.CredentialSpec == nil {
		return nil
	}
	s := c.Privileges.CredentialSpec
	set := 0
	for _, v := range []string{s.Config, s.File, s.Registry} {
		if v != "" {
			set++
		}
	}
	if set != 1 {
		return invalid(`invalid CredentialSpec: must provide exactly one of "file", "registry", or "config"`)
	}
	if s.Config == "" {
		return nil
	}
	for _, r := range c.Configs {
		if r.ConfigID == s.Config && r.Runtime != nil {
			return nil
		}
	}
	return invalid("invalid CredentialSpec: config %s is not among the service's configs with target Runtime", s.Config)
}

// validateTemplates tries a service's templates on a task that could be, and
// checks what comes of them.
func validateTemplates(s *swarm.ServiceSpec) error {
	ctx, cancel := context.WithTimeout(context.Background(), checkPatience)
	defer cancel()
	t, err := templates.CheckService(ctx, s)
	if ctx.Err() != nil {
		return invalid("the service's templates take longer than %s to expand", checkPatience)
	}
	if err != nil {
		return fmt.Errorf("TaskTemplate: %w", err)
	}
	return validateMounts(t.ContainerSpec.Mounts)
}
