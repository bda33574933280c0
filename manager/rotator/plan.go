package rotator

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Versions are the secrets and configs that there are, as far as it takes to know
// which is the newest. The zero value has none.
type Versions struct{ secrets, configs family }

// family are the objects of one kind.
type family struct {
	byID map[string]version
	// of are the versions of a name, in lower case, as names are compared.
	of map[string][]version
}

type version struct {
	id, name, versionOf string
	created             time.Time
}

// Read returns the versions in a view or transaction.
func Read(r store.Reader) *Versions {
	v := &Versions{}
	for s := range store.List[*api.Secret](r) {
		v.secrets.add(s.ID, &s.Spec.Annotations, s.CreatedAt)
	}
	for c := range store.List[*api.Config](r) {
		v.configs.add(c.ID, &c.Spec.Annotations, c.CreatedAt)
	}
	return v
}

func (f *family) add(id string, a *swarm.Annotations, created time.Time) {
	if f.byID == nil {
		f.byID, f.of = map[string]version{}, map[string][]version{}
	}
	v := version{id, a.Name, strings.ToLower(a.Labels[api.VersionOfLabel]), created}
	f.byID[id] = v
	if v.versionOf != "" {
		f.of[v.versionOf] = append(f.of[v.versionOf], v)
	}
}

func older(a, b version) int {
	return cmp.Or(a.created.Compare(b.created), strings.Compare(a.id, b.id))
}

// newest returns the latest version of what the id names that was created after a
// time; itself, if there is none.
func (f *family) newest(id string, after time.Time) (version, bool) {
	have, ok := f.byID[id]
	if !ok {
		return version{}, false
	}
	best := have
	names := []string{strings.ToLower(have.name)}
	if have.versionOf != "" {
		names = append(names, have.versionOf)
	}
	for _, name := range names {
		for _, v := range f.of[name] {
			if v.created.After(after) && older(best, v) < 0 {
				best = v
			}
		}
	}
	return best, best.id != id
}

// Apply returns the spec with its references to secrets and configs replaced by
// such to the newest versions, which keep their targets; false if there are none
// newer, or the service does not ask for them. Those created before the time given
// are left aside. What it changes is a copy. A config for the runtime stays.
func Apply(s *swarm.ServiceSpec, v *Versions, after time.Time) (swarm.ServiceSpec, bool) {
	out, c := *s, s.TaskTemplate.ContainerSpec
	if c == nil || !Rotates(s) {
		return out, false
	}
	n := *c
	n.Secrets, n.Configs = slices.Clone(c.Secrets), slices.Clone(c.Configs)
	changed := false
	for i, r := range n.Secrets {
		if best, ok := v.secrets.newest(r.SecretID, after); ok {
			u := *r
			u.SecretID, u.SecretName = best.id, best.name
			n.Secrets[i], changed = &u, true
		}
	}
	for i, r := range n.Configs {
		if best, ok := v.configs.newest(r.ConfigID, after); ok && r.File != nil {
			u := *r
			u.ConfigID, u.ConfigName = best.id, best.name
			n.Configs[i], changed = &u, true
		}
	}
	if changed {
		out.TaskTemplate.ContainerSpec = &n
	}
	return out, changed
}

// Rotates reports whether a service asks for newer versions.
func Rotates(s *swarm.ServiceSpec) bool {
	p, err := api.ParsePolicy(s.Labels)
	return err == nil && p.Rotate
}

// Plan returns the spec that a service is to be updated to; false if it stays. One
// that was rolled back takes up only what came after that: what it was rolled back
// from may be to blame.
func Plan(s *api.Service, v *Versions) (swarm.ServiceSpec, bool) {
	var after time.Time
	if st := s.UpdateStatus; st != nil && st.StartedAt != nil {
		switch st.State {
		case swarm.UpdateStateRollbackStarted, swarm.UpdateStateRollbackPaused, swarm.UpdateStateRollbackCompleted:
			after = *st.StartedAt
		case swarm.UpdateStateUpdating, swarm.UpdateStatePaused, swarm.UpdateStateCompleted:
		}
	}
	return Apply(&s.Spec, v, after)
}
