package api

import (
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// Constraint is a parsed placement constraint, as "node.labels.zone==a".
type Constraint struct {
	// Key as it was written, without the space around it.
	Key   string
	Value string
	// Not is set for !=.
	Not bool

	attribute attribute
	prefix    netip.Prefix // of node.ip
}

// attribute says what of a node a key reads.
type attribute struct {
	kind  attributeKind
	label string
}

type attributeKind uint8

const (
	unknownAttribute attributeKind = iota
	nodeIDAttribute
	hostnameAttribute
	addressAttribute
	roleAttribute
	osAttribute
	archAttribute
	nodeLabelAttribute
	engineLabelAttribute
)

const (
	nodeLabels   = "node.labels."
	engineLabels = "engine.labels."
)

// attributeOf reads a key. Keys are compared without regard to case, but for
// the names of labels.
func attributeOf(key string) attribute {
	switch k := strings.ToLower(key); {
	case k == "node.id":
		return attribute{kind: nodeIDAttribute}
	case k == "node.hostname":
		return attribute{kind: hostnameAttribute}
	case k == "node.ip":
		return attribute{kind: addressAttribute}
	case k == "node.role":
		return attribute{kind: roleAttribute}
	case k == "node.platform.os":
		return attribute{kind: osAttribute}
	case k == "node.platform.arch":
		return attribute{kind: archAttribute}
	case strings.HasPrefix(k, nodeLabels) && len(k) > len(nodeLabels):
		return attribute{nodeLabelAttribute, key[len(nodeLabels):]}
	case strings.HasPrefix(k, engineLabels) && len(k) > len(engineLabels):
		return attribute{engineLabelAttribute, key[len(engineLabels):]}
	}
	return attribute{}
}

func (a attribute) of(n *Node) string {
	switch a.kind {
	case nodeIDAttribute:
		return n.ID
	case hostnameAttribute:
		return n.Description.Hostname
	case addressAttribute:
		return n.Status.Addr
	case roleAttribute:
		return string(n.Role)
	case osAttribute:
		return n.Description.Platform.OS
	case archAttribute:
		return architecture(n.Description.Platform.Architecture)
	case nodeLabelAttribute:
		return n.Spec.Labels[a.label]
	case engineLabelAttribute:
		return n.Description.Engine.Labels[a.label]
	}
	return ""
}

// NodeAttribute returns what a key of placement ("node.labels.zone",
// "node.hostname"…) says of a node: "" for a label that it does not have, false
// for a key that does not exist.
func NodeAttribute(n *Node, key string) (string, bool) {
	a := attributeOf(key)
	return a.of(n), a.kind != unknownAttribute
}

// attributeKeys are the keys that there are, for errors.
const attributeKeys = "node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME or engine.labels.NAME"

// ParseConstraints parses placement constraints: KEY==VALUE or KEY!=VALUE each.
// Invalid names the expression and what is wrong with it.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	if len(exprs) == 0 {
		return nil, nil
	}
	out := make([]Constraint, 0, len(exprs))
	for _, e := range exprs {
		c, err := parseConstraint(e)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func parseConstraint(e string) (Constraint, error) {
	var c Constraint
	key, value, ok := strings.Cut(e, "==")
	if !ok {
		key, value, ok = strings.Cut(e, "!=")
		c.Not = true
	}
	if !ok {
		return c, Errorf(Invalid, "invalid constraint %q: want KEY==VALUE or KEY!=VALUE", e)
	}
	c.Key, c.Value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch c.attribute = attributeOf(c.Key); {
	case c.Key == "" || c.Value == "":
		return c, Errorf(Invalid, "invalid constraint %q: the key or the value is missing: want KEY==VALUE or KEY!=VALUE", e)
	case c.attribute.kind == unknownAttribute:
		return c, Errorf(Invalid, "invalid constraint %q: unknown key %q: want %s", e, c.Key, attributeKeys)
	case !only(c.Key, "-_./"):
		return c, Errorf(Invalid, "invalid constraint %q: key %q has characters other than letters, digits and -_./", e, c.Key)
	case !only(c.Value, ":-_.*()?+[]\\^$|/ \t\n"):
		return c, Errorf(Invalid, "invalid constraint %q: value %q has characters that Docker does not allow in one", e, c.Value)
	case c.attribute.kind == addressAttribute:
		if c.prefix, ok = parseAddress(c.Value); !ok {
			return c, Errorf(Invalid, "invalid constraint %q: %q is neither an IP address nor a network in CIDR form", e, c.Value)
		}
	}
	return c, nil
}

// only reports whether s has nothing but ASCII letters, digits and others.
func only(s, others string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte(others, c) < 0:
			return false
		}
	}
	return true
}

func parseAddress(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), true
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), true
}

// MatchAll reports whether a node meets all constraints.
func MatchAll(cs []Constraint, n *Node) bool {
	for i := range cs {
		if !cs[i].Match(n) {
			return false
		}
	}
	return true
}

// Match reports whether a node meets the constraint. Values are compared
// without regard to case; a label that is not there is "", and an address that is
// not known is none and in no network.
func (c *Constraint) Match(n *Node) bool {
	have := c.attribute.of(n)
	switch c.attribute.kind {
	case addressAttribute:
		a, err := netip.ParseAddr(have)
		return (err == nil && c.prefix.Contains(a.Unmap())) != c.Not
	case archAttribute:
		return strings.EqualFold(have, architecture(c.Value)) != c.Not
	}
	return strings.EqualFold(have, c.Value) != c.Not
}

// architecture gives the names of an architecture one form.
func architecture(a string) string {
	switch strings.ToLower(a) {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return a
}

// MatchPlatform reports whether a node has one of the platforms; any has when
// none is named, and an empty field of one stands for all.
func MatchPlatform(platforms []swarm.Platform, n *Node) bool {
	if len(platforms) == 0 {
		return true
	}
	have := n.Description.Platform
	for _, p := range platforms {
		if (p.OS == "" || strings.EqualFold(p.OS, have.OS)) &&
			(p.Architecture == "" || strings.EqualFold(architecture(p.Architecture), architecture(have.Architecture))) {
			return true
		}
	}
	return false
}
