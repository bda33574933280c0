package executor

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/templates"
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

// options turns a task into what its container is made from, its templates filled
// in.
func options(ctx context.Context, t *api.Task, deps exec.Dependencies, hostname string, platform swarm.Platform) (*engine.CreateOptions, error) {
	if t.Spec == nil || t.Spec.ContainerSpec == nil {
		return nil, api.Errorf(api.Invalid, "task %s has no container to run", t.ID)
	}
	values := templates.Of(t, hostname, platform)
	spec, err := values.Expand(ctx, &t.Spec.TaskSpec, resourceEnv(t.GenericResources))
	if err != nil {
		return nil, err
	}
	cs := spec.ContainerSpec
	o := &engine.CreateOptions{Name: t.Name(), Managed: true, Config: config(t, cs)}
	host, err := hostConfig(t, spec)
	if err != nil {
		return nil, err
	}
	o.Host = host
	if o.Files, err = files(ctx, values, cs, deps); err != nil {
		return nil, err
	}
	attached, err := values.Networks(ctx, t.Networks)
	if err != nil {
		return nil, err
	}
	o.Networking, host.NetworkMode = networks(attached, deps)
	return o, nil
}

// resourceEnv tells the container which generic resources are its own.
func resourceEnv(assigned []swarm.GenericResource) []string {
	var env []string
	values := map[string][]string{} // of named resources several, separated by commas, as Docker has it
	for _, r := range assigned {
		kind, value := "", ""
		switch {
		case r.NamedResourceSpec != nil:
			kind, value = r.NamedResourceSpec.Kind, r.NamedResourceSpec.Value
		case r.DiscreteResourceSpec != nil:
			kind, value = r.DiscreteResourceSpec.Kind, strconv.FormatInt(r.DiscreteResourceSpec.Value, 10)
		default:
			continue
		}
		key := "DOCKER_RESOURCE_" + strings.ToUpper(kind)
		values[key] = append(values[key], value)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		env = append(env, key+"="+strings.Join(values[key], ","))
	}
	return env
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
	c.Labels = maps.Clone(cs.Labels)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	maps.Copy(c.Labels, map[string]string{
		labelNodeID: t.NodeID, labelServiceID: t.ServiceID, labelServiceName: t.Spec.ServiceName,
		labelTask: "", labelTaskID: t.ID, labelTaskName: t.Name(),
	})
	c.ExposedPorts = shownPorts(t.Ports)
	return c
}

func hostConfig(t *api.Task, spec *swarm.TaskSpec) (*container.HostConfig, error) {
	cs := spec.ContainerSpec
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
	if l := spec.LogDriver; l != nil && l.Name != "" {
		h.LogConfig = container.LogConfig{Type: l.Name, Config: l.Options}
	}
	limits(spec.Resources, &h.Resources)
	if p := cs.Privileges; p != nil && p.CredentialSpec != nil {
		return nil, api.Errorf(api.Unimplemented, "ContainerSpec.Privileges.CredentialSpec: credential specs are for Windows, and this node runs Linux")
	}
	h.SecurityOpt = security(cs.Privileges)
	return h, nil
}

// shownPorts are the ports that a container shows as its own: those of the node, as in
// Docker. Ports of the routing mesh are the service's.
func shownPorts(ports []swarm.PortConfig) network.PortSet {
	var set network.PortSet
	for p := range bindings(ports) {
		if set == nil {
			set = network.PortSet{}
		}
		set[p] = struct{}{}
	}
	return set
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

// networks says which networks the container joins; the node's default bridge
// when the task names none.
func networks(attached []api.NetworkAttachment, deps exec.Dependencies) (*network.NetworkingConfig, container.NetworkMode) {
	eps := map[string]*network.EndpointSettings{}
	mode := container.NetworkMode(network.NetworkBridge)
	for i, a := range attached {
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
