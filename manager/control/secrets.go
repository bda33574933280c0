package control

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/templates"
)

// maxObjectName is Docker's limit.
const maxObjectName = 64

// checkPatience is how long templates may take to be tried, which are bounded by
// work too.
const checkPatience = 5 * time.Second

func validateObject(ctx context.Context, kind string, a *swarm.Annotations, data []byte, limit int, templating, driver *swarm.Driver) error {
	switch {
	case a.Name == "":
		return invalid("name must be provided")
	case len(a.Name) > maxObjectName || !regexp.MustCompile(`^[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?$`).MatchString(a.Name):
		return invalid("invalid %s name %q: only %d [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]", kind, a.Name, maxObjectName)
	case driver != nil:
		return api.Errorf(api.Unimplemented, "%s drivers are not served: there are no plugins; create the %s with its data", kind, kind)
	case len(data) == 0 || len(data) >= limit:
		return invalid("%s data must be larger than 0 and less than %d bytes: it has %d", kind, limit, len(data))
	}
	if templating != nil {
		if templating.Name != templates.Driver {
			return invalid("%s template driver %q is not known: want %s", kind, templating.Name, templates.Driver)
		}
		ctx, cancel := context.WithTimeout(ctx, checkPatience)
		defer cancel()
		if err := templates.CheckPayload(ctx, data, limit); err != nil {
			return fmt.Errorf("%s %s: %w", kind, a.Name, err)
		}
	}
	return validateDataLabels(a.Labels)
}

// maxUsers bounds how many users of something are listed.
const maxUsers = 100

// users lists the services that use something, for a refusal to remove it.
func users(r store.Reader, by store.By) string {
	var names []string
	for s := range store.List[*api.Service](r, by) {
		names = append(names, s.Spec.Name)
	}
	slices.Sort(names)
	if more := len(names) - maxUsers; more > 0 {
		return strings.Join(names[:maxUsers], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

func inUse(kind, name, services string) error {
	if services == "" {
		return nil
	}
	return invalid("%s '%s' is in use by the following service%s: %s", kind, name, map[bool]string{true: "s"}[strings.Contains(services, ",")], services)
}

// matchNamed reports whether a list of secrets or configs shows one; what names
// begin with is told whatever its case, as with Docker.
func matchNamed(f api.Filters, id string, a *swarm.Annotations) bool {
	return anyPrefix(f["id"], id) && (len(f["name"]) == 0 || slices.ContainsFunc(f["name"], func(v string) bool {
		return strings.HasPrefix(strings.ToLower(a.Name), strings.ToLower(v))
	})) && matchLabels(f["label"], a.Labels) &&
		(len(f["names"]) == 0 || slices.Contains(f["names"], a.Name))
}

// SecretList returns the secrets, without their data.
func (c *Control) SecretList(_ context.Context, f api.Filters) ([]swarm.Secret, error) {
	if err := checkFilters(f, "id", "label", "name", "names"); err != nil {
		return nil, err
	}
	out := []swarm.Secret{}
	for s := range store.List[*api.Secret](c.cfg.Store.View()) {
		if matchNamed(f, s.ID, &s.Spec.Annotations) {
			out = append(out, withoutData(s))
		}
	}
	return out, nil
}

func withoutData(s *api.Secret) swarm.Secret {
	out := s.Secret
	out.Spec.Data = nil
	return out
}

// SecretInspect returns a secret, without its data.
func (c *Control) SecretInspect(_ context.Context, name string) (*swarm.Secret, error) {
	s, err := find(c.cfg.Store.View(), "secret", name, secretID)
	if err != nil {
		return nil, err
	}
	out := withoutData(s)
	return &out, nil
}

// follow has an object count as made after another: the newest version of a secret is
// the last that was made, also by a clock that was set back.
func follow(n, other *swarm.Meta) {
	if !n.CreatedAt.After(other.CreatedAt) {
		n.CreatedAt = other.CreatedAt.Add(1)
	}
}

// SecretCreate adds a secret.
func (c *Control) SecretCreate(ctx context.Context, spec *swarm.SecretSpec) (string, error) {
	if err := validateObject(ctx, "secret", &spec.Annotations, spec.Data, api.MaxSecretSize, spec.Templating, spec.Driver); err != nil {
		return "", err
	}
	s := &api.Secret{}
	s.ID, s.Spec = api.NewID(), *spec
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for o := range store.List[*api.Secret](tx) {
			follow(&s.Meta, &o.Meta)
		}
		return store.Create(tx, s)
	})
	return s.ID, err
}

// SecretUpdate changes a secret's labels; nothing else can be changed.
func (c *Control) SecretUpdate(ctx context.Context, name string, version uint64, spec *swarm.SecretSpec) error {
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		s, err := find(tx, "secret", name, secretID)
		if err != nil {
			return err
		}
		if spec.Name != s.Spec.Name || spec.Data != nil && string(spec.Data) != string(s.Spec.Data) ||
			spec.Driver != nil || otherDriver(spec.Templating, s.Spec.Templating) {
			return invalid("only updates to Labels are allowed")
		}
		if err := validateDataLabels(spec.Labels); err != nil {
			return err
		}
		n := *s
		n.Version.Index, n.Spec.Labels = version, maps.Clone(spec.Labels)
		return store.Put(tx, &n)
	})
	return err
}

// SecretRemove removes a secret that no service uses.
func (c *Control) SecretRemove(ctx context.Context, name string) error {
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		s, err := find(tx, "secret", name, secretID)
		if err != nil {
			return err
		}
		if err := inUse("secret", s.Spec.Name, users(tx, store.BySecret(s.ID))); err != nil {
			return err
		}
		return store.Delete[*api.Secret](tx, s.ID)
	})
	return err
}

// ConfigList returns the configs.
func (c *Control) ConfigList(_ context.Context, f api.Filters) ([]swarm.Config, error) {
	if err := checkFilters(f, "id", "label", "name", "names"); err != nil {
		return nil, err
	}
	out := []swarm.Config{}
	for o := range store.List[*api.Config](c.cfg.Store.View()) {
		if matchNamed(f, o.ID, &o.Spec.Annotations) {
			out = append(out, o.Config)
		}
	}
	return out, nil
}

// ConfigInspect returns a config.
func (c *Control) ConfigInspect(_ context.Context, name string) (*swarm.Config, error) {
	o, err := find(c.cfg.Store.View(), "config", name, configID)
	if err != nil {
		return nil, err
	}
	return &o.Config, nil
}

// ConfigCreate adds a config.
func (c *Control) ConfigCreate(ctx context.Context, spec *swarm.ConfigSpec) (string, error) {
	if err := validateObject(ctx, "config", &spec.Annotations, spec.Data, api.MaxConfigSize, spec.Templating, nil); err != nil {
		return "", err
	}
	o := &api.Config{}
	o.ID, o.Spec = api.NewID(), *spec
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for other := range store.List[*api.Config](tx) {
			follow(&o.Meta, &other.Meta)
		}
		return store.Create(tx, o)
	})
	return o.ID, err
}

// ConfigUpdate changes a config's labels; nothing else can be changed.
func (c *Control) ConfigUpdate(ctx context.Context, name string, version uint64, spec *swarm.ConfigSpec) error {
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		o, err := find(tx, "config", name, configID)
		if err != nil {
			return err
		}
		if spec.Name != o.Spec.Name || spec.Data != nil && string(spec.Data) != string(o.Spec.Data) || otherDriver(spec.Templating, o.Spec.Templating) {
			return invalid("only updates to Labels are allowed")
		}
		if err := validateDataLabels(spec.Labels); err != nil {
			return err
		}
		n := *o
		n.Version.Index, n.Spec.Labels = version, maps.Clone(spec.Labels)
		return store.Put(tx, &n)
	})
	return err
}

// ConfigRemove removes a config that no service uses.
func (c *Control) ConfigRemove(ctx context.Context, name string) error {
	_, err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		o, err := find(tx, "config", name, configID)
		if err != nil {
			return err
		}
		if err := inUse("config", o.Spec.Name, users(tx, store.ByConfig(o.ID))); err != nil {
			return err
		}
		return store.Delete[*api.Config](tx, o.ID)
	})
	return err
}

// otherDriver reports whether an update names another driver; it need not name any.
func otherDriver(in, have *swarm.Driver) bool { return in != nil && !reflect.DeepEqual(in, have) }

// validateDataLabels checks a secret's or config's labels.
func validateDataLabels(labels map[string]string) error {
	if err := validateLabels(labels); err != nil {
		return err
	}
	return api.CheckDataLabels(labels)
}
