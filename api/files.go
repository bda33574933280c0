package api

import "path"

// Docker's limits for the data of a secret and of a config, in bytes: it must be
// less.
const (
	MaxSecretSize = 500 << 10
	MaxConfigSize = 1000 << 10
)

// SecretPath is where a container finds a secret with this target.
func SecretPath(target string) string { return under("/run/secrets", target) }

// ConfigPath is where a container finds a config with this target.
func ConfigPath(target string) string { return under("/", target) }

func under(dir, target string) string {
	if path.IsAbs(target) {
		return path.Clean(target)
	}
	return path.Join(dir, target)
}
