// Package dockerapi serves the Docker Engine HTTP API, versions 1.44 and later
// as defined by github.com/moby/moby/api. Routes are data: a file per tag of
// the API reference, each route with its method, path and minimum version.
// What they do is behind narrow interfaces (backend.go).
package dockerapi
