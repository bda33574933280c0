package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	initTarget  = "/sbin/docker-init"
)

// specOf builds the OCI spec for one run of the container.
func (c *ctr) specOf(ctx context.Context, r *record, env *environment) (*specs.Spec, error) {
	h, cfg := r.Host, r.Config
	u, home, err := c.resolveUser(ctx, r, cfg.User, h.GroupAdd)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(h, c.e.host.capabilities)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal: cfg.Tty, User: u, Cwd: cfg.WorkingDir, Env: processEnv(cfg, home),
		Capabilities: capabilitySets(caps, u.UID == 0),
		Rlimits:      c.e.rlimits(h.Ulimits), OOMScoreAdj: &h.OomScoreAdj,
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if cfg.Tty && h.ConsoleSize != [2]uint{} {
		p.ConsoleSize = &specs.Box{Height: h.ConsoleSize[0], Width: h.ConsoleSize[1]}
	}
	if h.Umask != nil {
		p.User.Umask = h.Umask
	}
	program, args := command(cfg)
	p.Args = append([]string{program}, args...)
	spec := &specs.Spec{
		Version: specs.Version, Process: p, Hostname: cfg.Hostname, Domainname: cfg.Domainname,
		Root: &specs.Root{Readonly: h.ReadonlyRootfs}, Annotations: h.Annotations,
		Linux: &specs.Linux{
			MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths, Sysctl: sysctls(h),
			CgroupsPath: c.e.cfg.CgroupParent,
		},
	}
	if h.CgroupParent != "" {
		spec.Linux.CgroupsPath = h.CgroupParent
	}
	if err := c.namespaces(spec, r, env); err != nil {
		return nil, err
	}
	if err := c.specMounts(spec, r, env); err != nil {
		return nil, err
	}
	if err := c.e.useInit(spec, h); err != nil {
		return nil, err
	}
	if spec.Linux.Resources, err = resources(&h.Resources, h); err != nil {
		return nil, err
	}
	if err := devices(spec, h); err != nil {
		return nil, err
	}
	return spec, c.e.applySecurity(spec, h)
}

func capabilitySets(caps []string, root bool) *specs.LinuxCapabilities {
	s := &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	if !root { // gained by executing a file that has them, as with Docker
		s.Effective, s.Permitted = nil, nil
	}
	return s
}

// processEnv adds what every process has: PATH, HOSTNAME, HOME and TERM.
func processEnv(c *container.Config, home string) []string {
	base := []string{defaultPath}
	if c.Hostname != "" {
		base = append(base, "HOSTNAME="+c.Hostname)
	}
	if c.Tty {
		base = append(base, "TERM=xterm")
	}
	env := mergeEnv(base, c.Env)
	if home != "" && !slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "HOME=") }) {
		env = append(env, "HOME="+home)
	}
	return env
}

func (e *Engine) rlimits(own []*container.Ulimit) []specs.POSIXRlimit {
	all := slices.Clone(own)
	for _, d := range e.cfg.Ulimits {
		if !slices.ContainsFunc(own, func(u *container.Ulimit) bool { return u.Name == d.Name }) {
			all = append(all, d)
		}
	}
	out := make([]specs.POSIXRlimit, 0, len(all))
	for _, u := range all {
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return out
}

// sysctls adds Docker's defaults, which let any user open low ports and ping.
func sysctls(h *container.HostConfig) map[string]string {
	out := map[string]string{}
	if !h.NetworkMode.IsHost() && !h.NetworkMode.IsContainer() {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range h.Sysctls {
		out[k] = v
	}
	return out
}

// useInit puts the init in front of the program.
func (e *Engine) useInit(spec *specs.Spec, h *container.HostConfig) error {
	want := e.cfg.Init
	if h.Init != nil {
		want = *h.Init
	}
	if !want || h.PidMode.IsHost() || h.PidMode.IsContainer() {
		return nil
	}
	if e.cfg.InitPath == "" {
		return api.Errorf(api.Invalid, "an init is wanted for the container, but there is none on this node; set --init-path")
	}
	spec.Process.Args = append([]string{initTarget, "--"}, spec.Process.Args...)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: initTarget, Type: "bind", Source: e.cfg.InitPath, Options: []string{"bind", "ro"}})
	return nil
}

func (c *ctr) namespaces(spec *specs.Spec, r *record, env *environment) error {
	h := r.Host
	add := func(t specs.LinuxNamespaceType, path string) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	add(specs.MountNamespace, "")
	if !h.NetworkMode.IsHost() {
		if env.netns == "" {
			return api.Errorf(api.Internal, "container %s: its network has no namespace", c.id)
		}
		add(specs.NetworkNamespace, env.netns)
	}
	switch {
	case h.UTSMode.IsHost():
		spec.Hostname, spec.Domainname = "", ""
	case h.NetworkMode.IsHost() && h.UTSMode == "" && spec.Hostname == "":
	default:
		add(specs.UTSNamespace, "")
	}
	for _, n := range []struct {
		kind  specs.LinuxNamespaceType
		name  string // in /proc/PID/ns
		host  bool
		other string
	}{
		{specs.PIDNamespace, "pid", h.PidMode.IsHost(), h.PidMode.Container()},
		{specs.IPCNamespace, "ipc", h.IpcMode.IsHost(), h.IpcMode.Container()},
	} {
		switch {
		case n.host:
		case n.other != "":
			path, err := c.e.namespaceOf(n.other, n.name)
			if err != nil {
				return err
			}
			add(n.kind, path)
		default:
			add(n.kind, "")
		}
	}
	if h.CgroupnsMode.IsPrivate() {
		add(specs.CgroupNamespace, "")
	}
	return nil
}
