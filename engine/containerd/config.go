package containerd

import (
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/legion-swarm/legion/api"
)

// Config says where containers and images live and which programs run them.
type Config struct {
	// Root is the folder for what outlives a reboot: content, snapshots,
	// writable layers. Required.
	Root string
	// State is the folder for what does not: bundles, shims, FIFOs, sockets.
	// Required; below exec-root.
	State string
	// Address of an external containerd, as /run/containerd/containerd.sock.
	// Empty: containerd inside this process.
	Address string
	// Namespace in containerd. Empty: "legion".
	Namespace string
	// Snapshotter by its containerd name. Empty: overlayfs, and native where
	// the file system under Root can't do that.
	Snapshotter string

	// Runc and Shim are absolute paths of the programs. Required.
	Runc, Shim string
	// ContainersPerShim bounds how many containers share a shim process.
	// 0: 64.
	ContainersPerShim int
	// CgroupParent is the cgroup below which containers' cgroups are made,
	// unless their spec's CgroupsPath names another parent. Empty: "/legion".
	CgroupParent string

	// Mirrors are registries asked before Docker Hub, as URLs.
	Mirrors []string
	// Insecure are registries (host[:port] or CIDR) that may be spoken to over
	// plain HTTP or with a certificate that nobody vouches for. Loopback
	// addresses always are.
	Insecure []string
	// CertsDir holds registries' certificates as Docker keeps them
	// (host:port/*.crt, *.cert, *.key). Empty: /etc/docker/certs.d.
	CertsDir string
	// MaxDownloads and MaxUploads bound the layers under way for one pull or
	// push. 0: 3 and 5, Docker's defaults.
	MaxDownloads, MaxUploads int
	// UserAgent is sent to registries. Empty: "legion".
	UserAgent string

	// Log receives what has no caller to return to. Required.
	Log *slog.Logger
}

// Limits on what a container or an image can make grow here.
const (
	shimStartTimeout = 30 * time.Second
	shimCallTimeout  = 2 * time.Minute
	dialTimeout      = 5 * time.Second
)

func (c Config) withDefaults() (Config, error) {
	for _, f := range []struct{ name, value string }{
		{"Root", c.Root}, {"State", c.State}, {"Runc", c.Runc}, {"Shim", c.Shim},
	} {
		if !filepath.IsAbs(f.value) {
			return c, api.Errorf(api.Invalid, "containerd: %s must be an absolute path, not %q", f.name, f.value)
		}
	}
	for _, p := range []string{c.Runc, c.Shim} {
		if _, err := os.Stat(p); err != nil {
			return c, api.Errorf(api.Invalid, "containerd: a program to run containers is missing: %w", err)
		}
	}
	if c.Log == nil {
		return c, api.Errorf(api.Invalid, "containerd: Log is nil")
	}
	if c.ContainersPerShim < 0 || c.MaxDownloads < 0 || c.MaxUploads < 0 {
		return c, api.Errorf(api.Invalid, "containerd: a limit is negative")
	}
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.Namespace, "legion")
	set(&c.CgroupParent, "/legion")
	set(&c.CertsDir, "/etc/docker/certs.d")
	set(&c.UserAgent, "legion")
	setInt := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	setInt(&c.ContainersPerShim, 64)
	setInt(&c.MaxDownloads, 3)
	setInt(&c.MaxUploads, 5)
	return c, nil
}
