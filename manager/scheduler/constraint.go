package scheduler

import (
	"net/netip"
	"regexp"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// Constraint is a parsed placement constraint, as "node.labels.zone==a".
type Constraint struct {
	Key   string
	Value string
	Not   bool
}

const (
	nodeLabels   = "node.labels."
	engineLabels = "engine.labels."
)

// ParseConstraints parses placement constraints. Invalid names the expression
// and what is wrong with it.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	var out []Constraint
	value := regexp.MustCompile(`^(?i)[a-z0-9:\-_\s\.\*\(\)\?\+\[\]\\\^\$\|\/]+$`)
	label := regexp.MustCompile(`^(?i)[a-z_][a-z0-9\-_./]*$`)
	for _, e := range exprs {
		c, ok := split(e)
		if !ok {
			return nil, api.Errorf(api.Invalid, "invalid constraint %q: want KEY==VALUE or KEY!=VALUE", e)
		}
		if !known(c.Key) {
			return nil, api.Errorf(api.Invalid, "invalid constraint %q: unknown key %q: want node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME or engine.labels.NAME", e, c.Key)
		}
		if !label.MatchString(c.Key) || !value.MatchString(c.Value) {
			return nil, api.Errorf(api.Invalid, "invalid constraint %q: the key or the value has characters that are not allowed", e)
		}
		out = append(out, c)
	}
	return out, nil
}

func split(e string) (Constraint, bool) {
	for _, op := range []string{"==", "!="} {
		if k, v, ok := strings.Cut(e, op); ok {
			c := Constraint{Key: strings.TrimSpace(k), Value: strings.TrimSpace(v), Not: op == "!="}
			return c, c.Key != "" && c.Value != ""
		}
	}
	return Constraint{}, false
}

func known(key string) bool {
	switch strings.ToLower(key) {
	case "node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch":
		return true
	}
	return hasPrefixFold(key, nodeLabels) && len(key) > len(nodeLabels) || hasPrefixFold(key, engineLabels) && len(key) > len(engineLabels)
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// MatchAll reports whether a node meets all constraints.
func MatchAll(cs []Constraint, n *api.Node) bool {
	for i := range cs {
		if !cs[i].Match(n) {
			return false
		}
	}
	return true
}

// Match reports whether a node meets the constraint. Values are compared
// without regard to case, ids and label values of exact case aside as in Docker.
func (c *Constraint) Match(n *api.Node) bool {
	switch key := strings.ToLower(c.Key); {
	case key == "node.ip":
		return c.matchIP(n.Status.Addr) != c.Not
	case key == "node.platform.arch":
		return strings.EqualFold(arch(n.Description.Platform.Architecture), arch(c.Value)) != c.Not
	case key == "node.id":
		return c.equal(n.ID)
	case key == "node.hostname":
		return c.equal(n.Description.Hostname)
	case key == "node.role":
		return c.equal(string(n.Role))
	case key == "node.platform.os":
		return c.equal(n.Description.Platform.OS)
	case strings.HasPrefix(key, nodeLabels):
		return c.equal(n.Spec.Labels[c.Key[len(nodeLabels):]])
	case strings.HasPrefix(key, engineLabels):
		return c.equal(n.Description.Engine.Labels[c.Key[len(engineLabels):]])
	}
	return false
}

func (c *Constraint) equal(have string) bool { return strings.EqualFold(have, c.Value) != c.Not }

func (c *Constraint) matchIP(addr string) bool {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return false
	}
	if p, err := netip.ParsePrefix(c.Value); err == nil {
		return p.Contains(a)
	}
	want, err := netip.ParseAddr(c.Value)
	return err == nil && want == a
}

// arch gives the names of an architecture one form.
func arch(a string) string {
	switch strings.ToLower(a) {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return a
}
