package local

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/machine"
	"github.com/legion-swarm/legion/settings"
)

// Paths inside a machine.
const (
	insideDir    = "/run/machine"
	insideBinary = insideDir + "/legion"
	insidePlan   = insideDir + "/plan.json"
)

// Files in a machine's folder.
const (
	socketFile  = "legion.sock"
	dataDir     = "data"
	tmpDir      = "tmp"
	configFile  = "daemon.json"
	logFile     = "daemon.log"
	endedFile   = "ended"
	processFile = "process.json"
	resolvFile  = "resolv.conf"
	nameFile    = "hostname"
)

// plan is what the machine's init does before it starts the daemon.
type plan struct {
	Hostname string
	// Mounts are made in this order.
	Mounts []mount
	// Links are symbolic links: name → target.
	Links [][2]string
	// Unified is where cgroup v2 is, inside; empty: nowhere. Processes leave its
	// root, or no controllers could be handed to containers.
	Unified string
	// Daemon is the command of the daemon; empty: none. Env is the environment
	// of everything.
	Daemon, Env []string
	// Log and Ended are files: the daemon's output, and how it ended last.
	Log, Ended string
}

// mount is one to make.
type mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
	// Optional: a kernel without it, or a host without the target, is no error.
	Optional bool
	// Dir: the target is a folder that is made if it is missing.
	Dir bool
}

// planFor works out a machine. The binary is mounted from source, since
// its path may be hidden by then.
func planFor(m *machine.Machine, f facts, hostsFile, source string) plan {
	p := plan{
		Hostname: m.Name, Log: m.Path(logFile), Ended: m.Path(endedFile),
		Mounts: systemMounts(),
		Daemon: daemonCommand(m),
		Env:    environment(m, f),
	}
	p.cgroups(f.hierarchies)
	const quiet = unix.MS_NOSUID | unix.MS_NODEV
	p.Mounts = append(p.Mounts,
		mount{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: quiet, Data: "mode=755"},
		mount{Source: "tmpfs", Target: "/run/lock", Type: "tmpfs", Flags: quiet | unix.MS_NOEXEC, Data: "mode=1777,size=5m", Dir: true},
		bind(source, insideBinary, false),
		bind(m.Path(tmpDir), "/tmp", false),
		bind(m.Path(nameFile), "/etc/hostname", true),
		bind(hostsFile, "/etc/hosts", true),
		bind(m.Path(resolvFile), "/etc/resolv.conf", true),
	)
	return p
}

// environment is that of the daemon and of what is run in the machine.
func environment(m *machine.Machine, f facts) []string {
	return slices.Concat([]string{
		"PATH=" + path(f.path), "HOME=/root", "LANG=C.UTF-8", "DOCKER_HOST=unix://" + settings.DefaultSocket,
	}, f.proxy, m.Engine.Env)
}

func bind(source, target string, optional bool) mount {
	return mount{Source: source, Target: target, Flags: unix.MS_BIND, Optional: optional}
}

func systemMounts() []mount {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mount{
		{Source: "proc", Target: "/proc", Type: "proc", Flags: quiet},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: quiet},
		{Source: "bpf", Target: "/sys/fs/bpf", Type: "bpf", Flags: quiet, Data: "mode=700", Optional: true},
		{Source: "shm", Target: "/dev/shm", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777", Optional: true},
		{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: quiet, Optional: true},
	}
}

// cgroups mounts each hierarchy where the host has it; the machine's cgroup is
// the root of what it sees.
func (p *plan) cgroups(all []hierarchy) {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, h := range all {
		if h.whole() {
			p.Unified = h.Dir
			p.Mounts = append(p.Mounts, mount{Source: "cgroup2", Target: h.Dir, Type: "cgroup2", Flags: flags})
			return
		}
	}
	p.Mounts = append(p.Mounts, mount{Source: "tmpfs", Target: cgroupRoot, Type: "tmpfs", Flags: flags, Data: "mode=755,size=1m"})
	for _, h := range all {
		if h.Unified {
			p.Unified = h.Dir
			p.Mounts = append(p.Mounts, mount{Source: "cgroup2", Target: h.Dir, Type: "cgroup2", Flags: flags, Dir: true})
			continue
		}
		data := strings.Join(h.Options, ",")
		if strings.HasPrefix(data, "name=") {
			data = "none," + data
		}
		p.Mounts = append(p.Mounts, mount{Source: "cgroup", Target: h.Dir, Type: "cgroup", Flags: flags, Data: data, Dir: true})
		if len(h.Options) > 1 {
			for _, o := range h.Options {
				p.Links = append(p.Links, [2]string{filepath.Join(filepath.Dir(h.Dir), o), filepath.Base(h.Dir)})
			}
		}
	}
}

func daemonCommand(m *machine.Machine) []string {
	return append([]string{
		insideBinary, "daemon", "--data-root", m.Path(dataDir), "--config-file", m.Path(configFile),
		"--host", "unix://" + settings.DefaultSocket, "--host", "unix://" + m.Path(socketFile),
	}, m.Engine.Flags...)
}

// path is the host's PATH with the usual folders, and legion's.
func path(host string) string {
	dirs := filepath.SplitList(host)
	have := map[string]bool{}
	var all []string
	for _, d := range append(dirs, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", insideDir) {
		if filepath.IsAbs(d) && !have[d] {
			have[d] = true
			all = append(all, d)
		}
	}
	return strings.Join(all, ":")
}

// maxSocketPath is the kernel's limit (unix(7)), less what the daemon appends
// to a socket's name while it makes it.
const maxSocketPath = 107 - len(".4194304")

// validateDir refuses storage folders in which machines can't be kept.
func validateDir(dir string) string {
	for _, d := range []string{"/run", "/var/run", "/tmp", "/proc", "/sys", "/dev"} {
		if dir == d || strings.HasPrefix(dir, d+"/") {
			return "every machine has a " + d + " of its own: choose a storage folder (MACHINE_STORAGE_PATH) that is not below " + d
		}
	}
	if n := len(filepath.Join(dir, socketFile)); n > maxSocketPath {
		return "the path " + filepath.Join(dir, socketFile) + " is longer than a socket's may be (" + strconv.Itoa(maxSocketPath) + "): choose a shorter name or storage folder (MACHINE_STORAGE_PATH)"
	}
	return ""
}
