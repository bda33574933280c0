package control

import (
	"context"
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Config is what a Control needs.
type Config struct {
	// Store is required.
	Store *store.Store
	// External speaks with external CAs. Nil: none can be configured.
	External External
	// Manager tells a node's manager status; nil for workers. May be nil.
	Manager func(n *api.Node) *swarm.ManagerStatus
	// Routes are the prefixes that this host routes, which no network may overlap.
	// Nil: none.
	Routes func(ctx context.Context) ([]netip.Prefix, error)
}

// Control serves users. Safe for concurrent use. Objects are named by id, name
// or unambiguous id prefix.
type Control struct{ cfg Config }

// New returns a control.
func New(cfg Config) *Control { return &Control{cfg} }

// find resolves what a user calls an object: its id, its name, or the
// beginning of its id if only one has it.
func find[T api.Object](r store.Reader, kind, name string, id func(T) string) (T, error) {
	var none T
	if o := store.Get[T](r, name); o != none {
		return o, nil
	}
	if name == "" {
		return none, api.Errorf(api.Invalid, "the name of a %s is missing", kind)
	}
	var found []T
	for o := range store.List[T](r, store.ByName(name)) {
		found = append(found, o)
	}
	if len(found) == 0 {
		for o := range store.List[T](r, store.ByIDPrefix(name)) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 0:
		return none, api.Errorf(api.NotFound, "%s %s not found", kind, name)
	case 1:
		return store.Get[T](r, id(found[0])), nil
	}
	return none, api.Errorf(api.Invalid, "%s %s is ambiguous (%d matches found)", kind, name, len(found))
}

func nodeID(n *api.Node) string       { return n.ID }
func serviceID(s *api.Service) string { return s.ID }
func networkID(n *api.Network) string { return n.ID }
func secretID(s *api.Secret) string   { return s.ID }
func configID(c *api.Config) string   { return c.ID }

func (c *Control) service(r store.Reader, name string) (*api.Service, error) {
	return find(r, "service", name, serviceID)
}

// checkFilters refuses filters that a list doesn't know.
func checkFilters(f api.Filters, known ...string) error {
	for k := range f {
		ok := false
		for _, n := range known {
			ok = ok || k == n
		}
		if !ok {
			return api.Errorf(api.Invalid, "invalid filter '%s'", k)
		}
	}
	return nil
}

// anyPrefix reports whether s begins with one of the values; without values,
// all do.
func anyPrefix(values []string, s string) bool {
	for _, v := range values {
		if strings.HasPrefix(s, v) {
			return true
		}
	}
	return len(values) == 0
}

// matchLabels reports whether all of the filter's labels (KEY or KEY=VALUE) are
// there.
func matchLabels(values []string, labels map[string]string) bool {
	for _, v := range values {
		key, want, exact := strings.Cut(v, "=")
		have, ok := labels[key]
		if !ok || exact && have != want {
			return false
		}
	}
	return true
}
