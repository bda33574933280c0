package dockerapi

import "strings"

// Route is what is known of a request before its handler runs: enough to
// decide whether the caller may. The object that it names is r.PathValue("name").
type Route struct {
	Method string
	// Pattern is the path with {name} for the object's name or id.
	Pattern string
	// Tag is the group of the API reference: Container, Image, Service …
	Tag string
	// Operation is the API reference's operation id: ContainerList …
	Operation string
	// Since is the first minor version (1.Since) that has the route; 0: all.
	Since int
	// Streams is set where the answer may go on for as long as the client
	// listens: such requests end first when the daemon stops.
	Streams bool
}

type handler func(c *call) error

type route struct {
	Route
	segments []string // of Pattern; "{name}" matches one segment, "{name...}" one or more
	handle   handler
}

// newRoute: spec is "METHOD /pattern".
func newRoute(tag, operation, spec string, h handler) route {
	method, pattern, _ := strings.Cut(spec, " ")
	return route{
		Route:    Route{Method: method, Pattern: pattern, Tag: tag, Operation: operation},
		segments: strings.Split(pattern[1:], "/"),
		handle:   h,
	}
}

func streaming(r route) route { r.Streams = true; return r }

// router finds routes by method and first segment, then by trying each: there
// are at most some thirty under one first segment. Immutable once built.
type router map[string][]route

func newRouter(routes []route) router {
	t := make(router)
	for _, r := range routes {
		k := r.Method + " " + r.segments[0]
		t[k] = append(t[k], r)
	}
	return t
}

// match finds the route and the name in the path. Routes without a name win
// over those with one.
func (t router) match(method, path string) (*route, string) {
	path = strings.TrimPrefix(path, "/")
	first, _, _ := strings.Cut(path, "/")
	segments := strings.Split(path, "/")
	var found *route
	var foundName string
	candidates := t[method+" "+first]
	for i := range candidates {
		r := &candidates[i]
		name, ok := r.match(segments)
		if !ok {
			continue
		}
		if !strings.Contains(r.Pattern, "{") {
			return r, ""
		}
		if found == nil || len(r.segments) > len(found.segments) {
			found, foundName = r, name
		}
	}
	return found, foundName
}

func (r *route) match(segments []string) (name string, ok bool) {
	for i, want := range r.segments {
		switch want {
		case "{name...}":
			after := len(r.segments) - i - 1
			n := len(segments) - i - after
			if n < 1 {
				return "", false
			}
			name = strings.Join(segments[i:i+n], "/")
			for j, w := range r.segments[i+1:] {
				if segments[i+n+j] != w {
					return "", false
				}
			}
			return name, strings.Trim(name, "/") != ""
		case "{name}":
			if i >= len(segments) || segments[i] == "" {
				return "", false
			}
			name = segments[i]
		default:
			if i >= len(segments) || segments[i] != want {
				return "", false
			}
		}
	}
	return name, len(segments) == len(r.segments)
}
