package api

import (
	"regexp"
	"slices"
)

// Filters selects objects in a list call: for each key, the object must match
// at least one of the values; all keys must match ("label" is the exception:
// all of its values must match). Which keys a list knows is up to the list; it
// answers Invalid for one that it does not know.
type Filters map[string][]string

// MatchesAny reports whether one of s is, or holds a match of, one of the
// patterns of a filter: regular expressions, so that a part of a name is one of
// itself. A pattern that is none stands for itself.
func MatchesAny(patterns []string, s ...string) bool {
	for _, p := range patterns {
		re, err := regexp.Compile(p)
		if slices.Contains(s, p) || err == nil && slices.ContainsFunc(s, re.MatchString) {
			return true
		}
	}
	return false
}
