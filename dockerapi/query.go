package dockerapi

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

// bool reads a flag as Docker does: anything but "", 0, no, false and none is true.
func (c *call) bool(key string) bool {
	switch strings.ToLower(strings.TrimSpace(c.query.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// boolOr is bool with a default for when the parameter is not there at all.
func (c *call) boolOr(key string, def bool) bool {
	if !c.query.Has(key) {
		return def
	}
	return c.bool(key)
}

// strictBool refuses what is neither true nor false.
func (c *call) strictBool(key string) (bool, error) {
	s := c.query.Get(key)
	if s == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, api.Errorf(api.Invalid, "invalid value for %s: %q is neither true nor false", key, s)
	}
	return v, nil
}

// int reads a number; ok is false when the parameter is missing or empty.
func (c *call) int(key string) (n int, ok bool, err error) {
	s := c.query.Get(key)
	if s == "" {
		return 0, false, nil
	}
	n, err = strconv.Atoi(s)
	if err != nil {
		return 0, false, api.Errorf(api.Invalid, "invalid value for %s: %q is not a number", key, s)
	}
	return n, true, nil
}

// objectVersion reads the version parameter of an update. Docker calls it
// "invalid service version '…'".
func (c *call) objectVersion(kind string) (uint64, error) {
	s := c.query.Get("version")
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, api.Errorf(api.Invalid, "invalid %s version '%s': it must be the Version.Index that the %s was read with", kind, s, kind)
	}
	return n, nil
}

// time reads a Unix time, "seconds[.nanoseconds]"; RFC 3339 is accepted too.
// Missing, empty and 0 are the zero time.
func (c *call) time(key string) (time.Time, error) {
	s := c.query.Get(key)
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if t, ok := parseUnix(s); ok {
		return t, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	return time.Time{}, api.Errorf(api.Invalid, "invalid value for %s: %q is not a Unix timestamp", key, s)
}

func parseUnix(s string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(fraction) > 9 {
		return time.Time{}, false
	}
	var nano uint64
	if fraction != "" {
		if nano, err = strconv.ParseUint(fraction+strings.Repeat("0", 9-len(fraction)), 10, 32); err != nil {
			return time.Time{}, false
		}
	}
	return time.Unix(sec, int64(nano)), true
}

// filters reads the filters parameter and refuses keys that are not in known.
func (c *call) filters(known ...string) (api.Filters, error) {
	f, err := parseFilters(c.query.Get("filters"))
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(known, k) {
			told := slices.DeleteFunc(slices.Clone(known), func(k string) bool { return strings.HasPrefix(k, "_") }) // those are the command line's own
			return nil, api.Errorf(api.Invalid, "invalid filter '%s': known here are %s", k, strings.Join(told, ", "))
		}
	}
	return f, nil
}

// parseFilters reads both forms: {"k":["v"]} and {"k":{"v":true}}. Values of
// the second come in alphabetical order.
func parseFilters(s string) (api.Filters, error) {
	if s == "" {
		return nil, nil
	}
	var raw map[string]filterValues
	if err := json.Unmarshal([]byte(s), &raw); err != nil {
		return nil, api.Errorf(api.Invalid, "invalid filters: want JSON such as {\"label\":[\"a=b\"]}: %w", err)
	}
	f := make(api.Filters, len(raw))
	for k, v := range raw {
		f[k] = v
	}
	return f, nil
}

type filterValues []string

var _ json.Unmarshaler = (*filterValues)(nil)

// UnmarshalJSON takes a list of strings or an object with the values as keys.
func (v *filterValues) UnmarshalJSON(b []byte) error {
	var list []string
	if json.Unmarshal(b, &list) == nil {
		*v = list
		return nil
	}
	var set map[string]bool
	if json.Unmarshal(b, &set) == nil {
		*v = slices.Sorted(maps.Keys(set))
		return nil
	}
	return errors.New("a filter's values must be a list of strings or an object of booleans")
}

// encodedAuth is the X-Registry-Auth header, in base64's alphabet for URLs: some
// clients use the other one.
func (c *call) encodedAuth() string {
	return strings.NewReplacer("+", "-", "/", "_").Replace(c.r.Header.Get(registry.AuthHeader))
}

// auth reads the registry login in the X-Registry-Auth header; nil without one.
func (c *call) auth() (*registry.AuthConfig, error) {
	h := c.encodedAuth()
	if h == "" {
		return nil, nil
	}
	a, err := authconfig.Decode(h)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "%w", err)
	}
	if *a == (registry.AuthConfig{}) {
		return nil, nil
	}
	return a, nil
}

// platform reads a platform: JSON, or os/architecture[/variant].
func (c *call) platform() (*ocispec.Platform, error) {
	all, err := c.platforms("platform")
	if err != nil || len(all) == 0 {
		return nil, err
	}
	if len(all) > 1 {
		return nil, api.Errorf(api.Invalid, "only one platform can be given")
	}
	return &all[0], nil
}

func (c *call) platforms(key string) ([]ocispec.Platform, error) {
	var all []ocispec.Platform
	for _, s := range c.query[key] {
		if s == "" {
			continue
		}
		p, err := parsePlatform(s)
		if err != nil {
			return nil, err
		}
		all = append(all, *p)
	}
	return all, nil
}

func parsePlatform(s string) (*ocispec.Platform, error) {
	var p ocispec.Platform
	if strings.HasPrefix(s, "{") {
		if err := json.Unmarshal([]byte(s), &p); err != nil {
			return nil, api.Errorf(api.Invalid, "invalid platform %q: %w", s, err)
		}
	} else {
		parts := strings.Split(strings.ToLower(s), "/")
		if len(parts) < 2 || len(parts) > 3 {
			return nil, api.Errorf(api.Invalid, "invalid platform %q: want os/architecture[/variant], such as linux/arm64", s)
		}
		p.OS, p.Architecture = parts[0], parts[1]
		if len(parts) == 3 {
			p.Variant = parts[2]
		}
	}
	if p.OS == "" || p.Architecture == "" {
		return nil, api.Errorf(api.Invalid, "invalid platform %q: it names no operating system or no architecture", s)
	}
	return &p, nil
}
