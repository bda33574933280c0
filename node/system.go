package node

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/bundle"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/settings"
)

var _ dockerapi.System = (*Node)(nil)

func groupExists(name string) bool {
	_, err := user.LookupGroup(name)
	return err == nil
}

// Info implements dockerapi.System.
func (n *Node) Info(ctx context.Context) (*system.Info, error) {
	s := n.settings.Load()
	i := &system.Info{
		ID: n.id, Name: hostname(), ServerVersion: n.cfg.Build.Version, Driver: "overlayfs",
		DriverStatus: [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}},
		Plugins:      system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "macvlan", "null", "overlay"}, Log: []string{"json-file", "local"}},
		MemoryLimit:  true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		IPv4Forwarding: readFlag("/proc/sys/net/ipv4/ip_forward"), Debug: s.Debug, NGoroutines: goruntime.NumGoroutine(), NFd: openFiles(),
		SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: s.LogDriver, CgroupDriver: "cgroupfs", CgroupVersion: cgroupVersion(),
		KernelVersion: kernel(), OperatingSystem: operatingSystem(), OSVersion: osVersion(), OSType: "linux", Architecture: architecture(),
		IndexServerAddress: indexServer, RegistryConfig: n.registryConfig(), NCPU: goruntime.NumCPU(), MemTotal: memory(),
		DockerRootDir: s.DataRoot, HTTPProxy: s.HTTPProxy, HTTPSProxy: s.HTTPSProxy, NoProxy: s.NoProxy, Labels: orEmpty(s.Labels),
		ExperimentalBuild: s.Experimental, Runtimes: map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: n.programs.Runc}}},
		DefaultRuntime: "runc", Swarm: n.swarm.info(ctx), LiveRestoreEnabled: true, InitBinary: filepath.Base(n.programs.Init),
		SecurityOptions: []string{"name=seccomp,profile=" + seccompName(s.SeccompProfile)}, CDISpecDirs: []string{},
		FirewallBackend: n.firewall(), Warnings: []string{},
		Containerd: &system.ContainerdInfo{Address: s.Containerd, Namespaces: system.ContainerdNamespaces{Containers: s.ContainerdNamespace}},
	}
	if cgroupVersion() == "2" {
		i.SecurityOptions = append(i.SecurityOptions, "name=cgroupns")
	}
	versions := n.programs.Versions(ctx)
	i.RuncCommit.ID, i.ContainerdCommit.ID, i.InitCommit.ID = versions[bundle.Runc], versions[bundle.Shim], versions[bundle.Init]
	i.GenericResources = genericResources(s)
	list, err := n.engine.ContainerList(ctx, engine.ContainerListOptions{All: true})
	if err != nil {
		return nil, err
	}
	i.Containers = len(list)
	for c := range list {
		switch list[c].State {
		case container.StateRunning, container.StateRestarting:
			i.ContainersRunning++
		case container.StatePaused:
			i.ContainersPaused++
		default:
			i.ContainersStopped++
		}
	}
	images, err := n.engine.ImageList(ctx, engine.ImageListOptions{})
	if err != nil {
		return nil, err
	}
	i.Images = len(images)
	return i, nil
}

// firewall says who filters and translates; docker info prints all of it.
func (n *Node) firewall() *system.FirewallInfo {
	balancer, reason := n.plane.Balancer()
	if reason != nil {
		balancer += " (" + reason.Error() + ")"
	}
	return &system.FirewallInfo{Driver: "nftables", Info: [][2]string{{"Service Addresses", balancer}}}
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func seccompName(profile string) string {
	if profile == "" {
		return "builtin"
	}
	return profile
}

func (n *Node) registryConfig() *registry.ServiceConfig {
	s := n.settings.Load()
	c := &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		IndexConfigs:          map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: orEmpty(s.RegistryMirrors), Secure: true, Official: true}},
		Mirrors:               orEmpty(s.RegistryMirrors),
	}
	for _, r := range s.InsecureRegistries {
		if p, err := netip.ParsePrefix(r); err == nil {
			c.InsecureRegistryCIDRs = append(c.InsecureRegistryCIDRs, p)
			continue
		}
		c.IndexConfigs[r] = &registry.IndexInfo{Name: r, Mirrors: []string{}}
	}
	return c
}

// insecure reports whether a registry may be spoken to without TLS.
func (n *Node) insecure(host string) bool {
	name, _, ok := strings.Cut(host, ":")
	if !ok {
		name = host
	}
	addr, err := netip.ParseAddr(name)
	if name == "localhost" || err == nil && addr.IsLoopback() {
		return true
	}
	s := n.settings.Load()
	return slices.ContainsFunc(s.InsecureRegistries, func(r string) bool {
		p, perr := netip.ParsePrefix(r)
		return r == host || err == nil && perr == nil && p.Contains(addr)
	})
}

// Version implements dockerapi.System.
func (n *Node) Version(ctx context.Context) (*system.VersionResponse, error) {
	b := n.cfg.Build
	v := &system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Legion"}, Version: b.Version, Os: "linux", Arch: goruntime.GOARCH,
		GitCommit: b.Commit, GoVersion: goruntime.Version(), KernelVersion: kernel(), BuildTime: b.Time,
		Components: []system.ComponentVersion{{Name: "Engine", Version: b.Version, Details: map[string]string{
			"Arch": goruntime.GOARCH, "Os": "linux", "GitCommit": b.Commit, "GoVersion": goruntime.Version(),
			"KernelVersion": kernel(), "BuildTime": b.Time, "Experimental": strconv.FormatBool(n.settings.Load().Experimental),
		}}},
	}
	versions := n.programs.Versions(ctx)
	versions["containerd"] = containerdVersion()
	for _, name := range []string{"containerd", bundle.Runc, bundle.Shim, bundle.Init} {
		if versions[name] != "" {
			v.Components = append(v.Components, system.ComponentVersion{Name: name, Version: versions[name], Details: map[string]string{"GitCommit": ""}})
		}
	}
	return v, nil
}

// Auth implements dockerapi.System.
func (n *Node) Auth(ctx context.Context, a *registry.AuthConfig) (*registry.AuthResponse, error) {
	return login{insecure: n.insecure}.Auth(ctx, a)
}

// SwarmState implements dockerapi.System.
func (n *Node) SwarmState() string {
	state, _ := n.swarm.state()
	if state != swarm.LocalNodeStateActive {
		return string(state)
	}
	if _, err := n.swarm.leading(); err != nil {
		return string(state) + "/worker"
	}
	return string(state) + "/manager"
}

// Events implements dockerapi.System.
func (n *Node) Events(ctx context.Context, o engine.EventsOptions, fn func(events.Message) error) error {
	return n.engine.Events(ctx, o, fn)
}

// DiskUsage implements dockerapi.System.
func (n *Node) DiskUsage(ctx context.Context, kinds []system.DiskUsageObject, verbose bool) (*system.DiskUsage, error) {
	want := func(k system.DiskUsageObject) bool { return len(kinds) == 0 || slices.Contains(kinds, k) }
	u := &system.DiskUsage{}
	var err error
	if want(system.ImageObject) {
		if u.ImageUsage, err = n.engine.ImageUsage(ctx); err != nil {
			return nil, err
		}
		if !verbose {
			u.ImageUsage.Items = nil
		}
	}
	if want(system.ContainerObject) {
		if u.ContainerUsage, err = n.engine.ContainerUsage(ctx); err != nil {
			return nil, err
		}
		if !verbose {
			u.ContainerUsage.Items = nil
		}
	}
	if want(system.VolumeObject) {
		if u.VolumeUsage, err = n.engine.VolumeUsage(ctx); err != nil {
			return nil, err
		}
		if !verbose {
			u.VolumeUsage.Items = nil
		}
	}
	if want(system.BuildCacheObject) {
		u.BuildCacheUsage = &build.DiskUsage{}
	}
	return u, nil
}

// genericResources are what --node-generic-resource says: KIND=NUMBER, or
// KIND=NAME as often as there are names.
func genericResources(s *settings.Daemon) []swarm.GenericResource {
	var out []swarm.GenericResource
	for _, r := range s.NodeGenericResources {
		kind, v, _ := strings.Cut(r, "=")
		if count, err := strconv.ParseInt(v, 10, 64); err == nil {
			out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: kind, Value: count}})
		} else {
			out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: kind, Value: v}})
		}
	}
	return out
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return h
}

func uname() unix.Utsname {
	var u unix.Utsname
	_ = unix.Uname(&u) // zeros if it fails, which it does not
	return u
}

func kernel() string {
	u := uname()
	return unix.ByteSliceToString(u.Release[:])
}

func architecture() string {
	u := uname()
	return unix.ByteSliceToString(u.Machine[:])
}

func memory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}

func readFlag(name string) bool {
	b, err := os.ReadFile(name)
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries)
}

func cgroupVersion() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "2"
	}
	return "1"
}

func operatingSystem() string { return osRelease("PRETTY_NAME", "Linux") }

func osVersion() string { return osRelease("VERSION_ID", "") }

func osRelease(key, fallback string) string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return fallback
	}
	defer f.Close() //nolint:errcheck // read only
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), key+"="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return fallback
}
