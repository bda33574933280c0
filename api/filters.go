package api

// Filters selects objects in a list call: for each key, the object must match
// at least one of the values; all keys must match ("label" is the exception:
// all of its values must match). Which keys a list knows is up to the list; it
// answers Invalid for one that it does not know.
type Filters map[string][]string
