package engine

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// environment is what was made ready for one run.
type environment struct {
	netns   string
	sources map[string]string // of mounts, by destination
	shm     string            // host path of /dev/shm; empty: one of its own
	etc     []specs.Mount     // resolv.conf, hosts, hostname
	files   []specs.Mount
}

// specMounts fills in all mounts: the kernel's, ours, the user's.
func (c *ctr) specMounts(spec *specs.Spec, r *record, env *environment) error {
	h := r.Host
	cgroupMode := "ro"
	sysMode := "ro"
	if h.Privileged {
		cgroupMode, sysMode = "rw", "rw"
	}
	base := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysMode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{cgroupMode, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	switch {
	case h.IpcMode.IsNone():
	case env.shm != "":
		base = append(base, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: env.shm, Options: []string{"rbind", "rprivate"}})
	default:
		base = append(base, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(h.ShmSize, 10)}})
	}
	if h.IpcMode.IsHost() {
		base = slices.DeleteFunc(base, func(m specs.Mount) bool { return m.Destination == "/dev/mqueue" })
		base = append(base, specs.Mount{Destination: "/dev/mqueue", Type: "bind", Source: "/dev/mqueue", Options: []string{"rbind"}})
	}
	user := make([]specs.Mount, 0, len(r.Mounts)+len(env.etc)+len(env.files))
	user = append(user, env.etc...)
	for i := range r.Mounts {
		m := c.specMount(&r.Mounts[i], env, spec)
		user = slices.DeleteFunc(user, func(o specs.Mount) bool { return o.Destination == m.Destination })
		base = slices.DeleteFunc(base, func(o specs.Mount) bool { return o.Destination == m.Destination })
		user = append(user, m)
	}
	user = append(user, env.files...)
	slices.SortStableFunc(user, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	spec.Mounts = slices.Concat(base, user)
	return nil
}

func depth(path string) int { return strings.Count(filepath.Clean(path), "/") }

func (c *ctr) specMount(m *mountPoint, env *environment, spec *specs.Spec) specs.Mount {
	out := specs.Mount{Destination: m.Destination, Type: "bind", Source: env.sources[m.Destination]}
	ro := "rw"
	if !m.RW {
		ro = "ro"
	}
	switch m.Type {
	case mount.TypeTmpfs:
		out.Type, out.Source = "tmpfs", "tmpfs"
		out.Options = m.tmpfs2options()
	case mount.TypeBind:
		out.Options = bindOptions(m, ro)
		if strings.Contains(string(m.Propagation), "shared") {
			spec.Linux.RootfsPropagation = "shared"
		} else if strings.Contains(string(m.Propagation), "slave") && spec.Linux.RootfsPropagation == "" {
			spec.Linux.RootfsPropagation = "slave"
		}
	default:
		out.Options = []string{"rbind", ro, "rprivate"}
	}
	return out
}

func bindOptions(m *mountPoint, ro string) []string {
	bind, prop := "rbind", m.Propagation
	o := m.Spec.BindOptions
	if o != nil && o.NonRecursive {
		bind = "bind"
	}
	if prop == "" {
		prop = mount.PropagationRPrivate
	}
	if !m.RW && bind == "rbind" && o != nil && o.ReadOnlyForceRecursive {
		ro = "rro"
	}
	return []string{bind, ro, string(prop)}
}

func (m *mountPoint) tmpfs2options() []string {
	opts, err := tmpfsOptions(m.Mode)
	if err != nil { // it was checked when the container was made
		opts = []string{"noexec", "nosuid", "nodev", "rprivate"}
	}
	if m.Spec.Type != mount.TypeTmpfs {
		return opts
	}
	if !m.RW {
		opts = append(opts, "ro")
	}
	if o := m.Spec.TmpfsOptions; o != nil {
		var more []string
		for _, l := range o.Options {
			more = append(more, strings.Join(l, "="))
		}
		if len(more) > 0 {
			if opts, err = tmpfsOptions(strings.Join(more, ",")); err != nil {
				opts = nil
			}
		}
		if o.Mode != 0 {
			opts = append(opts, "mode="+strconv.FormatUint(uint64(o.Mode.Perm()|o.Mode&0o7000), 8))
		}
		if o.SizeBytes != 0 {
			opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
		}
	}
	return opts
}

// mountSummary is what inspect says of mounts; tmpfs by --tmpfs is in
// HostConfig only.
func mountSummary(list []mountPoint) []container.MountPoint {
	out := make([]container.MountPoint, 0, len(list))
	for _, m := range list {
		if m.Type == mount.TypeTmpfs && m.Spec.Type == "" {
			continue
		}
		out = append(out, m.MountPoint)
	}
	return out
}
