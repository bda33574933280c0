package executor

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Docker's labels on tasks' containers.
const (
	labelNodeID      = "com.docker.swarm.node.id"
	labelServiceID   = "com.docker.swarm.service.id"
	labelServiceName = "com.docker.swarm.service.name"
	labelTask        = "com.docker.swarm.task"
	labelTaskID      = "com.docker.swarm.task.id"
	labelTaskName    = "com.docker.swarm.task.name"
)

// options turns a task into what its container is made from.
func options(t *api.Task, deps exec.Dependencies, hostname string, platform swarm.Platform) (*engine.CreateOptions, error) {
	if t.Spec == nil || t.Spec.ContainerSpec == nil {
		return nil, api.Errorf(api.Invalid, "task %s has no container to run", t.ID)
	}
	cs, err := valuesOf(t, hostname, platform).expandSpec(t.Spec.ContainerSpec)
	if err != nil {
		return nil, err
	}
	o := &engine.CreateOptions{Name: t.Name(), Managed: true, Config: config(t, cs)}
	host, err := hostConfig(t, cs)
	if err != nil {
		return nil, err
	}
	o.Host = host
	if o.Files, err = files(cs, deps); err != nil {
		return nil, err
	}
	o.Networking, host.NetworkMode = networks(t, deps)
	return o, nil
}

func config(t *api.Task, cs *swarm.ContainerSpec) *container.Config {
	c := &container.Config{
		Image: cs.Image, Hostname: cs.Hostname, User: cs.User, Env: slices.Clone(cs.Env), WorkingDir: cs.Dir,
		Tty: cs.TTY, OpenStdin: cs.OpenStdin, StopSignal: cs.StopSignal, Healthcheck: cs.Healthcheck,
	}
	if len(cs.Command) > 0 {
		c.Entrypoint = cs.Command
	}
	c.Cmd = cs.Args
	if g := cs.StopGracePeriod; g != nil {
		seconds := int((*g + 999_999_999) / 1_000_000_000) // whole ones, upwards
		c.StopTimeout = &seconds
	}
	for _, r := range t.GenericResources {
		switch {
		case r.NamedResourceSpec != nil:
			c.Env = append(c.Env, "DOCKER_RESOURCE_"+strings.ToUpper(r.NamedResourceSpec.Kind)+"="+r.NamedResourceSpec.Value)
		case r.DiscreteResourceSpec != nil:
			c.Env = append(c.Env, "DOCKER_RESOURCE_"+strings.ToUpper(r.DiscreteResourceSpec.Kind)+"="+strconv.FormatInt(r.DiscreteResourceSpec.Value, 10))
		}
	}
	c.Labels = maps.Clone(cs.Labels)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	maps.Copy(c.Labels, map[string]string{
		labelNodeID: t.NodeID, labelServiceID: t.ServiceID, labelServiceName: t.Spec.ServiceName,
		labelTask: "", labelTaskID: t.ID, labelTaskName: t.Name(),
	})
	ports := network.PortSet{}
	for _, p := range t.Ports {
		if port, ok := network.PortFrom(uint16(p.TargetPort), network.IPProtocol(p.Protocol)); ok {
			ports[port] = struct{}{}
		}
	}
	if len(ports) > 0 {
		c.ExposedPorts = ports
	}
	return c
}

func hostConfig(t *api.Task, cs *swarm.ContainerSpec) (*container.HostConfig, error) {
	h := &container.HostConfig{
		Mounts: cs.Mounts, GroupAdd: cs.Groups, Init: cs.Init, ReadonlyRootfs: cs.ReadOnly, Isolation: cs.Isolation,
		Sysctls: cs.Sysctls, CapAdd: cs.CapabilityAdd, CapDrop: cs.CapabilityDrop, OomScoreAdj: int(cs.OomScoreAdj),
		PortBindings: bindings(t.Ports),
	}
	h.Ulimits = cs.Ulimits
	for _, line := range cs.Hosts {
		// Swarm writes them as /etc/hosts does: address, then names.
		f := strings.Fields(line)
		if len(f) < 2 {
			return nil, api.Errorf(api.Invalid, "host entry %q: want an address and a name", line)
		}
		for _, name := range f[1:] {
			h.ExtraHosts = append(h.ExtraHosts, name+":"+f[0])
		}
	}
	if d := cs.DNSConfig; d != nil {
		h.DNS, h.DNSSearch, h.DNSOptions = d.Nameservers, d.Search, d.Options
	}
	if l := t.Spec.LogDriver; l != nil && l.Name != "" {
		h.LogConfig = container.LogConfig{Type: l.Name, Config: l.Options}
	}
	limits(t.Spec.Resources, &h.Resources)
	h.SecurityOpt = security(cs.Privileges)
	return h, nil
}

func bindings(ports []swarm.PortConfig) network.PortMap {
	m := network.PortMap{}
	for _, p := range ports {
		port, ok := network.PortFrom(uint16(p.TargetPort), network.IPProtocol(p.Protocol))
		if !ok || p.PublishMode != swarm.PortConfigPublishModeHost {
			continue
		}
		b := network.PortBinding{}
		if p.PublishedPort != 0 {
			b.HostPort = strconv.FormatUint(uint64(p.PublishedPort), 10)
		}
		m[port] = append(m[port], b)
	}
	return m
}

func limits(r *swarm.ResourceRequirements, to *container.Resources) {
	if r == nil {
		return
	}
	if l := r.Limits; l != nil {
		to.Memory, to.NanoCPUs = l.MemoryBytes, l.NanoCPUs
		if l.Pids > 0 {
			pids := l.Pids
			to.PidsLimit = &pids
		}
	}
	if r.Reservations != nil {
		to.MemoryReservation = r.Reservations.MemoryBytes
	}
	if s := r.SwapBytes; s != nil {
		switch {
		case *s < 0:
			to.MemorySwap = -1
		case to.Memory > 0:
			to.MemorySwap = to.Memory + *s
		}
	}
	to.MemorySwappiness = r.MemorySwappiness
}

func security(p *swarm.Privileges) []string {
	if p == nil {
		return nil
	}
	var opts []string
	if p.NoNewPrivileges {
		opts = append(opts, "no-new-privileges=true")
	}
	if s := p.SELinuxContext; s != nil {
		if s.Disable {
			opts = append(opts, "label=disable")
		}
		for _, f := range [][2]string{{"user", s.User}, {"role", s.Role}, {"type", s.Type}, {"level", s.Level}} {
			if f[1] != "" {
				opts = append(opts, "label="+f[0]+":"+f[1])
			}
		}
	}
	if s := p.Seccomp; s != nil {
		switch s.Mode {
		case swarm.SeccompModeUnconfined:
			opts = append(opts, "seccomp=unconfined")
		case swarm.SeccompModeCustom:
			opts = append(opts, "seccomp="+string(s.Profile))
		case swarm.SeccompModeDefault:
		}
	}
	if a := p.AppArmor; a != nil && a.Mode == swarm.AppArmorModeDisabled {
		opts = append(opts, "apparmor=unconfined")
	}
	return opts
}

// files are the secrets and configs that the task refers to.
func files(cs *swarm.ContainerSpec, deps exec.Dependencies) ([]engine.File, error) {
	var list []engine.File
	for _, ref := range cs.Secrets {
		if ref == nil || ref.File == nil {
			continue
		}
		s, ok := deps.Secret(ref.SecretID)
		if !ok {
			return nil, api.Errorf(api.NotFound, "secret %s (%s) was not sent to this node", ref.SecretName, ref.SecretID)
		}
		f, err := file(ref.File.Name, "/run/secrets", ref.File.UID, ref.File.GID, uint32(ref.File.Mode), s.Spec.Data)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", ref.SecretName, err)
		}
		f.Secret = true
		list = append(list, f)
	}
	for _, ref := range cs.Configs {
		if ref == nil || ref.File == nil {
			continue
		}
		c, ok := deps.Config(ref.ConfigID)
		if !ok {
			return nil, api.Errorf(api.NotFound, "config %s (%s) was not sent to this node", ref.ConfigName, ref.ConfigID)
		}
		f, err := file(ref.File.Name, "/", ref.File.UID, ref.File.GID, uint32(ref.File.Mode), c.Spec.Data)
		if err != nil {
			return nil, fmt.Errorf("config %s: %w", ref.ConfigName, err)
		}
		list = append(list, f)
	}
	return list, nil
}

func file(name, dir, uid, gid string, mode uint32, data []byte) (engine.File, error) {
	if !path.IsAbs(name) {
		name = path.Join(dir, name)
	}
	f := engine.File{Path: name, Data: data, Mode: mode}
	for _, n := range []struct {
		s  string
		to *int
	}{{uid, &f.UID}, {gid, &f.GID}} {
		if n.s == "" {
			continue
		}
		v, err := strconv.ParseUint(n.s, 10, 31)
		if err != nil {
			return f, api.Errorf(api.Invalid, "owner %q of file %s is not a number", n.s, name)
		}
		*n.to = int(v)
	}
	return f, nil
}

// networks says which networks the container joins; the node's default bridge
// when the task names none.
func networks(t *api.Task, deps exec.Dependencies) (*network.NetworkingConfig, container.NetworkMode) {
	eps := map[string]*network.EndpointSettings{}
	mode := container.NetworkMode(network.NetworkBridge)
	for i, a := range t.Networks {
		// Those of the swarm go by their ids: one that was removed and one that was
		// made in its place may have tasks here at the same time.
		name := a.NetworkID
		if n, ok := deps.Network(a.NetworkID); ok && n.Predefined {
			name = n.Spec.Name
		}
		ep := &network.EndpointSettings{Aliases: a.Aliases, DriverOpts: a.DriverOpts}
		for _, p := range a.Addresses {
			if ep.IPAMConfig == nil {
				ep.IPAMConfig = &network.EndpointIPAMConfig{}
			}
			if p.Addr().Is4() {
				ep.IPAMConfig.IPv4Address = p.Addr()
			} else {
				ep.IPAMConfig.IPv6Address = p.Addr()
			}
		}
		eps[name] = ep
		if i == 0 {
			mode = container.NetworkMode(name)
		}
	}
	return &network.NetworkingConfig{EndpointsConfig: eps}, mode
}
