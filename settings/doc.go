// Package settings is the configuration of one node's daemon: dockerd's flags
// and the keys of dockerd's daemon.json, merged into one validated value.
//
// Every option stands once, in the table of options.go: its flag, its key, its
// meaning, and where Legion has no such thing, why that is harmless or refused.
// The package is pure: it reads no file, no environment and no clock; the
// command reads the file and gives its content.
package settings
