package dockerapi

import (
	"strconv"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// MinAPIVersion and MaxAPIVersion bound the API versions that are served. The
// former is the first with swarm mode, the latter the one that
// github.com/moby/moby/api describes; requests whose path has no version get it.
const (
	MinAPIVersion = "1.24"
	MaxAPIVersion = "1.56"
)

// Version is a version of the API. All versions so far are 1.x.
type Version struct{ Major, Minor int }

func (v Version) String() string { return strconv.Itoa(v.Major) + "." + strconv.Itoa(v.Minor) }

// before reports whether v is older than 1.minor.
func (v Version) before(minor int) bool { return v.Major < 1 || v.Major == 1 && v.Minor < minor }

// from reports whether v is 1.minor or newer.
func (v Version) from(minor int) bool { return !v.before(minor) }

func (v Version) less(o Version) bool {
	return v.Major < o.Major || v.Major == o.Major && v.Minor < o.Minor
}

// parseVersion reads "1.44". It returns false for anything else.
func parseVersion(s string) (Version, bool) {
	a, b, ok := strings.Cut(s, ".")
	if !ok || len(a) > 4 || len(b) > 4 {
		return Version{}, false
	}
	major, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return Version{}, false
	}
	minor, err := strconv.ParseUint(b, 10, 16)
	if err != nil {
		return Version{}, false
	}
	return Version{int(major), int(minor)}, true
}

// splitVersion takes the leading /v1.NN off a path. Without one, rest is the
// whole path and found is empty.
func splitVersion(path string) (found, rest string) {
	if len(path) < 3 || path[0] != '/' || path[1] != 'v' || path[2] < '0' || path[2] > '9' {
		return "", path
	}
	found, rest, _ = strings.Cut(path[2:], "/")
	for i := range len(found) {
		if c := found[i]; c != '.' && (c < '0' || c > '9') {
			return "", path
		}
	}
	return found, "/" + rest
}

// requestVersion says which version a request wants, or why it can't be had;
// the texts are Docker's.
func requestVersion(found string) (Version, error) {
	latest, _ := parseVersion(MaxAPIVersion)
	if found == "" {
		return latest, nil
	}
	oldest, _ := parseVersion(MinAPIVersion)
	v, ok := parseVersion(found)
	switch {
	case !ok:
		return v, api.Errorf(api.Invalid, "invalid API version %q in the request's path: it is like 1.44", found)
	case v.less(oldest):
		return v, api.Errorf(api.Invalid, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, MinAPIVersion)
	case latest.less(v):
		return v, api.Errorf(api.Invalid, "client version %s is too new. Maximum supported API version is %s", v, MaxAPIVersion)
	}
	return v, nil
}
