package main

import (
	"runtime/debug"

	"github.com/docker/cli/cli/version"
)

// build says what this binary was made from.
type build struct{ version, commit, time string }

const (
	fallbackVersion = "0.1.0-dev"
	unknown         = "unknown"
	shortCommit     = 10
	// What Docker's package says when the linker was told nothing.
	unstamped = "unknown-version"
)

// readBuild takes the version from the linker (make), else from the module's
// version (go install), and commit and time from what Go stamps.
func readBuild() build {
	b := build{version: version.Version, commit: unknown, time: unknown}
	info, ok := debug.ReadBuildInfo()
	if b.version == unstamped {
		b.version = fallbackVersion
		if ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
			b.version = info.Main.Version[1:] // without the v
		}
	}
	if !ok {
		return b
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = s.Value[:min(len(s.Value), shortCommit)]
		case "vcs.time":
			b.time = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && b.commit != unknown {
		b.commit += "-dirty"
	}
	return b
}
