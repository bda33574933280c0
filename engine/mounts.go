package engine

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/legion-swarm/legion/api"
)

// mountPoint is a mount of a container, as it is written down.
type mountPoint struct {
	container.MountPoint
	// Spec holds the options that MountPoint has no place for.
	Spec mount.Mount
	// Anonymous volumes go with their container if that is asked for.
	Anonymous bool `json:",omitzero"`
	// CreateMissing makes a bind's source, as -v does.
	CreateMissing bool `json:",omitzero"`
	// Skip leaves the content of the image out of a new volume.
	NoCopy bool `json:",omitzero"`
	// Chmod-like label options z and Z are kept in Mode only: without SELinux
	// they mean nothing.
}

const localDriver = "local"

// planMounts makes a container's mounts from what the request and the image
// say. It touches neither the disk nor the volumes.
func planMounts(c *container.Config, h *container.HostConfig, from []mountPoint) ([]mountPoint, error) {
	byTarget := map[string]mountPoint{}
	for _, m := range from {
		byTarget[m.Destination] = m
	}
	seen := map[string]bool{}
	add := func(m mountPoint) error {
		if seen[m.Destination] {
			return api.Errorf(api.Invalid, "Duplicate mount point: %s", m.Destination)
		}
		seen[m.Destination] = true
		byTarget[m.Destination] = m
		return nil
	}
	for _, b := range h.Binds {
		m, err := parseBind(b, h.VolumeDriver)
		if err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for i := range h.Mounts {
		m, err := parseMount(&h.Mounts[i])
		if err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for target, opts := range h.Tmpfs {
		if err := checkTarget(target); err != nil {
			return nil, err
		}
		if _, err := tmpfsOptions(opts); err != nil {
			return nil, err
		}
		if err := add(mountPoint{MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: path.Clean(target), Mode: opts, RW: true}}); err != nil {
			return nil, err
		}
	}
	for target := range c.Volumes {
		if err := checkTarget(target); err != nil {
			return nil, err
		}
		target = path.Clean(target)
		if _, taken := byTarget[target]; taken {
			continue
		}
		driver := h.VolumeDriver
		if driver == "" {
			driver = localDriver
		}
		byTarget[target] = mountPoint{Anonymous: true, MountPoint: container.MountPoint{Type: mount.TypeVolume, Destination: target, Driver: driver, RW: true}}
	}
	list := make([]mountPoint, 0, len(byTarget))
	for _, m := range byTarget {
		list = append(list, m)
	}
	// Parents before what is mounted in them.
	slices.SortFunc(list, func(a, b mountPoint) int { return strings.Compare(a.Destination, b.Destination) })
	return list, nil
}

func checkTarget(target string) error {
	if !path.IsAbs(target) {
		return api.Errorf(api.Invalid, "invalid mount path: '%s' mount path must be absolute", target)
	}
	if path.Clean(target) == "/" {
		return api.Errorf(api.Invalid, "invalid specification: destination can't be '/'")
	}
	return nil
}

// parseBind reads docker's -v: [SOURCE:]TARGET[:MODE].
func parseBind(spec, driver string) (mountPoint, error) {
	invalid := func(err error) (mountPoint, error) {
		if err == nil {
			return mountPoint{}, api.Errorf(api.Invalid, "invalid volume specification: '%s'", spec)
		}
		return mountPoint{}, api.Errorf(api.Invalid, "invalid volume specification: '%s': %w", spec, err)
	}
	if strings.ContainsRune(spec, 0) {
		return invalid(nil)
	}
	parts := strings.Split(spec, ":")
	if slices.Contains(parts, "") {
		return invalid(nil)
	}
	var m mountPoint
	m.RW = true
	var source string
	switch len(parts) {
	case 1:
		m.Destination = parts[0]
	case 2:
		source, m.Destination = parts[0], parts[1]
	case 3:
		source, m.Destination, m.Mode = parts[0], parts[1], parts[2]
	default:
		return invalid(nil)
	}
	if err := checkTarget(m.Destination); err != nil {
		return invalid(err)
	}
	m.Destination = path.Clean(m.Destination)
	if path.IsAbs(source) {
		m.Type, m.Source, m.CreateMissing, m.Propagation = mount.TypeBind, path.Clean(source), true, mount.PropagationRPrivate
	} else {
		m.Type, m.Name, m.Driver, m.Anonymous = mount.TypeVolume, source, driver, source == ""
		if m.Driver == "" {
			m.Driver = localDriver
		}
		if source != "" {
			if err := checkVolumeName(source); err != nil {
				return invalid(err)
			}
		}
	}
	if err := m.applyMode(); err != nil {
		return invalid(err)
	}
	return m, nil
}

func (m *mountPoint) applyMode() error {
	if m.Mode == "" {
		return nil
	}
	seen := map[string]bool{}
	for o := range strings.SplitSeq(m.Mode, ",") {
		kind := o
		switch o {
		case "ro", "rw":
			kind, m.RW = "rw", o == "rw"
		case "z", "Z":
			kind = "z"
		case "nocopy":
			if m.Type != mount.TypeVolume {
				return api.Errorf(api.Invalid, "invalid mode: %s", m.Mode)
			}
			m.NoCopy = true
		case "consistent", "cached", "delegated":
			kind = "consistency"
		default:
			if !slices.Contains(mount.Propagations, mount.Propagation(o)) || m.Type != mount.TypeBind {
				return api.Errorf(api.Invalid, "invalid mode: %s", m.Mode)
			}
			kind, m.Propagation = "propagation", mount.Propagation(o)
		}
		if seen[kind] {
			return api.Errorf(api.Invalid, "invalid mode: %s", m.Mode)
		}
		seen[kind] = true
	}
	return nil
}

// parseMount reads docker's --mount.
func parseMount(in *mount.Mount) (mountPoint, error) {
	invalid := func(format string, args ...any) (mountPoint, error) {
		return mountPoint{}, api.Errorf(api.Invalid, "invalid mount config for type %q: "+format, append([]any{in.Type}, args...)...)
	}
	m := mountPoint{Spec: *in}
	m.Type, m.RW = in.Type, !in.ReadOnly
	if in.Target == "" {
		return invalid("field Target must not be empty")
	}
	if err := checkTarget(in.Target); err != nil {
		return invalid("%w", err)
	}
	m.Destination = path.Clean(in.Target)
	for _, o := range []struct {
		kind mount.Type
		name string
		set  bool
	}{
		{mount.TypeBind, "BindOptions", in.BindOptions != nil}, {mount.TypeVolume, "VolumeOptions", in.VolumeOptions != nil},
		{mount.TypeTmpfs, "TmpfsOptions", in.TmpfsOptions != nil}, {mount.TypeImage, "ImageOptions", in.ImageOptions != nil},
		{mount.TypeCluster, "ClusterOptions", in.ClusterOptions != nil},
	} {
		if o.set && o.kind != in.Type {
			return invalid("field %s must not be specified", o.name)
		}
	}
	switch in.Type {
	case mount.TypeBind:
		return m.bind(in, invalid)
	case mount.TypeVolume:
		return m.volume(in, invalid)
	case mount.TypeTmpfs:
		return m.tmpfs(in, invalid)
	case mount.TypeImage:
		if in.Source == "" {
			return invalid("field Source must not be empty")
		}
		if in.ImageOptions != nil && !localSubpath(in.ImageOptions.Subpath) {
			return invalid("subpath must be a relative path within the image")
		}
		m.Source, m.RW = in.Source, false
		return m, nil
	}
	return mountPoint{}, api.Errorf(api.Invalid, "mount type unknown: %q", in.Type)
}

func (m mountPoint) bind(in *mount.Mount, invalid func(string, ...any) (mountPoint, error)) (mountPoint, error) {
	if in.Source == "" {
		return invalid("field Source must not be empty")
	}
	if !filepath.IsAbs(in.Source) {
		return invalid("invalid mount path: '%s' mount path must be absolute", in.Source)
	}
	m.Source, m.Propagation = filepath.Clean(in.Source), mount.PropagationRPrivate
	if o := in.BindOptions; o != nil {
		if o.Propagation != "" {
			if !slices.Contains(mount.Propagations, o.Propagation) {
				return invalid("invalid propagation mode: %s", o.Propagation)
			}
			m.Propagation = o.Propagation
		}
		if o.ReadOnlyForceRecursive && (!in.ReadOnly || o.NonRecursive || o.ReadOnlyNonRecursive) {
			return invalid("ReadOnlyForceRecursive needs ReadOnly, without NonRecursive and ReadOnlyNonRecursive")
		}
		if o.ReadOnlyNonRecursive && !in.ReadOnly {
			return invalid("mount source cannot be ReadOnlyNonRecursive without ReadOnly")
		}
		m.CreateMissing = o.CreateMountpoint
	}
	return m, nil
}

// checkSource refuses binds whose source is not there.
func (m *mountPoint) checkSource() error {
	if m.Type != mount.TypeBind || m.CreateMissing {
		return nil
	}
	if _, err := os.Stat(m.Source); err != nil {
		if os.IsNotExist(err) {
			return api.Errorf(api.Invalid, "invalid mount config for type %q: bind source path does not exist: %s", m.Type, m.Source)
		}
		return api.Errorf(api.Invalid, "invalid mount config for type %q: %w", m.Type, err)
	}
	return nil
}

func (m mountPoint) volume(in *mount.Mount, invalid func(string, ...any) (mountPoint, error)) (mountPoint, error) {
	m.Driver, m.Name, m.Anonymous = localDriver, in.Source, in.Source == ""
	if o := in.VolumeOptions; o != nil {
		m.NoCopy = o.NoCopy
		if o.DriverConfig != nil && o.DriverConfig.Name != "" {
			m.Driver = o.DriverConfig.Name
		}
		if !localSubpath(o.Subpath) {
			return invalid("subpath must be a relative path within the volume")
		}
		if o.Subpath != "" && m.Anonymous {
			return invalid("must not set Subpath when using anonymous volumes")
		}
	}
	if m.Anonymous && in.ReadOnly {
		return invalid("must not set ReadOnly mode when using anonymous volumes")
	}
	if m.Name != "" {
		if err := checkVolumeName(m.Name); err != nil {
			return invalid("%w", err)
		}
	}
	return m, nil
}

func (m mountPoint) tmpfs(in *mount.Mount, invalid func(string, ...any) (mountPoint, error)) (mountPoint, error) {
	if in.Source != "" {
		return invalid("field Source must not be specified")
	}
	if o := in.TmpfsOptions; o != nil {
		if o.SizeBytes < 0 {
			return invalid("tmpfs size must not be negative")
		}
		for _, l := range o.Options {
			if len(l) == 0 || len(l) > 2 {
				return invalid("invalid option array length")
			}
			if _, err := tmpfsOptions(strings.Join(l, "=")); err != nil {
				return invalid("%w", err)
			}
		}
	}
	return m, nil
}

func localSubpath(p string) bool { return p == "" || filepath.IsLocal(p) }

// tmpfsOptions checks and splits the options of a tmpfs; what Docker sets by
// default comes first.
func tmpfsOptions(s string) ([]string, error) {
	opts := []string{"noexec", "nosuid", "nodev", "rprivate"}
	if s == "" {
		return opts, nil
	}
	flags := []string{"exec", "noexec", "suid", "nosuid", "dev", "nodev", "ro", "rw", "sync", "async", "dirsync", "remount", "mand", "nomand", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable", "defaults"}
	values := []string{"mode", "uid", "gid", "size", "nr_inodes", "nr_blocks", "mpol"}
	for o := range strings.SplitSeq(s, ",") {
		k, _, valued := strings.Cut(o, "=")
		if valued && !slices.Contains(values, k) || !valued && !slices.Contains(flags, k) {
			return nil, api.Errorf(api.Invalid, "invalid tmpfs option [%q]", o)
		}
		if on, ok := strings.CutPrefix(k, "no"); ok {
			opts = slices.DeleteFunc(opts, func(x string) bool { return x == on })
		} else {
			opts = slices.DeleteFunc(opts, func(x string) bool { return x == "no"+k })
		}
		if !slices.Contains(opts, o) && o != "defaults" {
			opts = append(opts, o)
		}
	}
	return opts, nil
}

// volumesFrom collects the mounts of other containers: NAME[:ro|rw].
func (e *Engine) volumesFrom(specs []string) ([]mountPoint, error) {
	var list []mountPoint
	for _, s := range specs {
		name, mode, _ := strings.Cut(s, ":")
		if mode != "" && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" {
			return nil, api.Errorf(api.Invalid, "invalid mode for volumes-from: %s", mode)
		}
		c, err := e.findOther(name)
		if err != nil {
			return nil, err
		}
		for _, m := range c.snapshot().Mounts {
			if m.Type != mount.TypeVolume && m.Type != mount.TypeBind {
				continue
			}
			m.Anonymous, m.NoCopy = false, true
			if mode == "ro" {
				m.RW = false
			}
			list = append(list, m)
		}
	}
	return list, nil
}
