package engine

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

// Config is what an Engine is made from.
type Config struct {
	// DataRoot is the folder for what outlives a reboot: containers, volumes.
	// Required, absolute.
	DataRoot string
	// ExecRoot is the folder for what does not: secrets. Required, absolute.
	ExecRoot string

	// Runtime, Images and Networks do the work. Required.
	Runtime  Runtime
	Images   Images
	Networks Networks
	// Log receives what has no caller to return to. Required.
	Log *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time

	// Name is the node's host name, for containers on the host's network. Empty:
	// the host's.
	Name string
	// LogDriver and LogOpts are for containers that name no driver. Empty:
	// json-file.
	LogDriver string
	LogOpts   map[string]string
	// Init runs containers below an init unless they say otherwise. InitPath is
	// the init's path on the host; without it, asking for an init is an error.
	Init     bool
	InitPath string
	// Ulimits are for containers that do not set the same one.
	Ulimits []*container.Ulimit
	// ShmSize is the size of /dev/shm in bytes; 0: 64 MiB.
	ShmSize int64
	// IpcMode is "private" or "shareable"; empty: private. CgroupnsMode is
	// "private" or "host"; empty: what suits the host's cgroup version.
	IpcMode      container.IpcMode
	CgroupnsMode container.CgroupnsMode
	// NoNewPrivileges holds for containers that do not say otherwise.
	NoNewPrivileges bool
	// Seccomp is "" or "builtin", "unconfined", or the content of a profile.
	Seccomp string
	// CgroupParent is the cgroup that containers are put below; empty: the
	// runtime's.
	CgroupParent string
	// DNS, DNSOptions and DNSSearch go in containers' resolv.conf.
	DNS        []netip.Addr
	DNSOptions []string
	DNSSearch  []string
	// HostGateway is what the name host-gateway in extra hosts stands for; if
	// empty, the container's gateway.
	HostGateway []netip.Addr
	// Storage names the snapshotter, for inspect and info; empty: overlayfs.
	Storage string
}

const defaultShmSize = 64 << 20

func (c Config) withDefaults() (Config, error) {
	for _, f := range []struct{ name, value string }{{"DataRoot", c.DataRoot}, {"ExecRoot", c.ExecRoot}} {
		if !filepath.IsAbs(f.value) {
			return c, api.Errorf(api.Invalid, "engine: %s must be an absolute path, not %q", f.name, f.value)
		}
	}
	if c.Runtime == nil || c.Images == nil || c.Networks == nil || c.Log == nil {
		return c, api.Errorf(api.Invalid, "engine: Runtime, Images, Networks and Log are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.LogDriver == "" {
		c.LogDriver = logfile.JSONFile
	}
	if c.ShmSize == 0 {
		c.ShmSize = defaultShmSize
	}
	if c.IpcMode == "" {
		c.IpcMode = container.IPCModePrivate
	}
	if c.Storage == "" {
		c.Storage = "overlayfs"
	}
	if _, err := logfile.Parse(c.LogDriver, c.LogOpts); err != nil {
		return c, err
	}
	return c, nil
}
