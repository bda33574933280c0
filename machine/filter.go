package machine

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Filter keeps the rows that match every KEY=VALUE; of one key any value is
// enough. The keys are docker-machine's: name is a regular expression, label one
// of the daemon's, with or without its value, swarm what the column of that name says.
func Filter(rows []Row, filters []string) ([]Row, error) {
	want := map[string][]string{}
	for _, s := range filters {
		k, v, ok := strings.Cut(s, "=")
		k, v = strings.ToLower(strings.TrimSpace(k)), strings.TrimSpace(v)
		if !ok || !slices.Contains([]string{"driver", "label", "name", "state", "swarm"}, k) {
			return nil, fmt.Errorf("unsupported filter %q: want driver=, label=, name=, state= or swarm=", s)
		}
		want[k] = append(want[k], v)
	}
	names := make([]*regexp.Regexp, 0, len(want["name"]))
	for _, s := range want["name"] {
		re, err := regexp.Compile(s)
		if err != nil {
			return nil, fmt.Errorf("filter name=%s: %w", s, err)
		}
		names = append(names, re)
	}
	var kept []Row
	for _, r := range rows {
		named := len(names) == 0 || slices.ContainsFunc(names, func(re *regexp.Regexp) bool { return re.MatchString(r.Name) })
		if named && matches(want["driver"], r.DriverName) && matches(want["state"], string(r.State)) && matches(want["swarm"], r.Swarm) && r.labelled(want["label"]) {
			kept = append(kept, r)
		}
	}
	return kept, nil
}

func matches(want []string, got string) bool {
	return len(want) == 0 || slices.ContainsFunc(want, func(w string) bool { return strings.EqualFold(w, got) })
}

// labelled tells whether the machine has one of the labels.
func (r Row) labelled(want []string) bool {
	return len(want) == 0 || slices.ContainsFunc(want, func(w string) bool {
		return slices.ContainsFunc(r.labels, func(l string) bool {
			name, _, _ := strings.Cut(l, "=")
			return w == l || w == name
		})
	})
}
