package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

const (
	// maxChanges bounds how many changes are told apart, maxValue how much of a
	// value is shown.
	maxChanges = 20
	maxValue   = 60
)

// changes says in what a spec differs from the one before: "image a → b".
func changes(was, is *swarm.ServiceSpec) []string {
	a, b := map[string]string{}, map[string]string{}
	flatten(a, "", tree(was))
	flatten(b, "", tree(is))
	out := []string{}
	for _, k := range slices.Sorted(maps.Keys(union(a, b))) {
		x, had := a[k]
		y, has := b[k]
		switch {
		case x == y && had == has:
			continue
		case len(out) == maxChanges:
			return append(out, "and more")
		case !had:
			out = append(out, fmt.Sprintf("%s + %s", plain(k), short(y)))
		case !has:
			out = append(out, fmt.Sprintf("%s - %s", plain(k), short(x)))
		default:
			out = append(out, fmt.Sprintf("%s %s → %s", plain(k), short(x), short(y)))
		}
	}
	return out
}

func union(a, b map[string]string) map[string]string {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// tree is a spec as its JSON is.
func tree(s *swarm.ServiceSpec) any {
	var out any
	b, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil { // it came as JSON
		return nil
	}
	return out
}

// flatten puts the leaves of a tree in to. Lists are leaves: what matters about
// them is their order, and they are short.
func flatten(to map[string]string, path string, v any) {
	m, ok := v.(map[string]any)
	if ok {
		for k, v := range m {
			flatten(to, path+"\x00"+k, v)
		}
		return
	}
	if v == nil || reflect.ValueOf(v).IsZero() {
		return // nothing said
	}
	if s, ok := v.(string); ok {
		to[path] = s
		return
	}
	if n, ok := v.(float64); ok && isDuration(path[strings.LastIndex(path, "\x00")+1:]) {
		to[path] = time.Duration(n).String()
		return
	}
	if b, err := json.Marshal(v); err == nil {
		to[path] = string(b)
	}
}

// isDuration reports whether a field of specs is a time in nanoseconds.
func isDuration(field string) bool {
	return slices.Contains([]string{"Delay", "Monitor", "Window", "Interval", "Timeout", "StartPeriod", "StartInterval", "StopGracePeriod"}, field)
}

// plain names a field as users know it.
func plain(path string) string {
	parts := strings.Split(strings.TrimPrefix(path, "\x00"), "\x00")
	known := map[string]string{
		"TaskTemplate/ContainerSpec": "", "TaskTemplate": "", "Mode/Replicated": "", "UpdateConfig": "update", "RollbackConfig": "rollback",
		"Labels": "label", "EndpointSpec": "endpoint",
	}
	for n := min(2, len(parts)-1); n > 0; n-- {
		head := strings.Join(parts[:n], "/")
		if name, ok := known[head]; ok {
			if parts = parts[n:]; name != "" {
				parts = append([]string{name}, parts...)
			}
			break
		}
	}
	if len(parts) > 1 && parts[0] == "label" {
		return "label " + strings.Join(parts[1:], ".")
	}
	for i, p := range parts {
		if i > 0 && parts[i-1] == "Labels" {
			break // a user's own words
		}
		parts[i] = strings.ToLower(p)
	}
	return strings.Join(parts, ".")
}

func short(v string) string {
	if r := []rune(v); len(r) > maxValue {
		return string(r[:maxValue]) + "…"
	}
	if v == "" {
		return `""`
	}
	return v
}

// sameSpec reports whether two specs say the same, nothing and empty being one.
func sameSpec(a, b *swarm.ServiceSpec) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
