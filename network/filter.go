package network

import (
	"slices"
	"strconv"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// compileFilters checks a list's filters and returns what they select. The
// filters that are not about a network's own properties match all.
func compileFilters(f api.Filters, known ...string) (func(*netw) bool, error) {
	for k, values := range f {
		if !slices.Contains(known, k) {
			return nil, api.Errorf(api.Invalid, "invalid filter '%s'", k)
		}
		for _, v := range values {
			switch {
			case k == "type" && v != "builtin" && v != "custom":
				return nil, api.Errorf(api.Invalid, "invalid filter 'type=%s': must be builtin or custom", v)
			case k == "dangling":
				if _, err := strconv.ParseBool(v); err != nil {
					return nil, api.Errorf(api.Invalid, "invalid filter 'dangling=%s': must be true or false", v)
				}
			}
		}
	}
	return func(w *netw) bool {
		n := &w.Network
		is := func(s string) func(string) bool { return func(v string) bool { return s == v } }
		kind := "custom"
		if predefined(n.Name) {
			kind = "builtin"
		}
		dangling := func(v string) bool {
			want, _ := strconv.ParseBool(v)
			return want == (len(w.users) == 0 && kind == "custom")
		}
		return anyOf(f["driver"], is(n.Driver)) && matches(f["id"], n.ID) && matches(f["name"], n.Name) &&
			anyOf(f["scope"], is(n.Scope)) && anyOf(f["type"], is(kind)) && anyOf(f["dangling"], dangling) &&
			matchLabels(f["label"], n.Labels) && (len(f["label!"]) == 0 || !matchLabels(f["label!"], n.Labels))
	}, nil
}

func matches(patterns []string, s string) bool {
	return len(patterns) == 0 || api.MatchesAny(patterns, s)
}

func anyOf(values []string, match func(string) bool) bool {
	return len(values) == 0 || slices.ContainsFunc(values, match)
}

// matchLabels reports whether labels has all of "key" and "key=value".
func matchLabels(want []string, labels map[string]string) bool {
	for _, l := range want {
		k, v, hasValue := strings.Cut(l, "=")
		if got, ok := labels[k]; !ok || hasValue && got != v {
			return false
		}
	}
	return true
}
