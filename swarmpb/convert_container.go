package swarmpb

import (
	"net/netip"
	"os"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legion-swarm/legion/api"
)

func isolations() []container.Isolation {
	return []container.Isolation{"", container.IsolationProcess, container.IsolationHyperV}
}

func newContainerSpec(s *api.TaskSpec) *ContainerSpec {
	c := s.ContainerSpec
	m := &ContainerSpec{
		Image: c.Image, Labels: table(c.Labels), Command: list(c.Command), Args: list(c.Args),
		Hostname: c.Hostname, Env: list(c.Env), Dir: c.Dir, User: c.User, Groups: list(c.Groups),
		Privileges: some(c.Privileges, newPrivileges),
		Tty:        c.TTY, OpenStdin: c.OpenStdin, ReadOnly: c.ReadOnly, StopSignal: c.StopSignal,
		Mounts: each(c.Mounts, newMount), StopGracePeriod: newDuration(c.StopGracePeriod),
		Secrets: each(c.Secrets, newSecretReference), Configs: each(c.Configs, newConfigReference),
		Hosts: list(c.Hosts), DnsConfig: some(c.DNSConfig, newDNS), Healthcheck: some(c.Healthcheck, newHealth),
		Isolation: numberOf[ContainerSpec_Isolation](isolations(), c.Isolation),
		Sysctls:   table(c.Sysctls), CapabilityAdd: list(c.CapabilityAdd), CapabilityDrop: list(c.CapabilityDrop),
		Ulimits: each(c.Ulimits, func(u *container.Ulimit) *ContainerSpec_Ulimit {
			return &ContainerSpec_Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard}
		}),
		OomScoreAdj: c.OomScoreAdj,
	}
	if c.Init != nil {
		m.Init = wrapperspb.Bool(*c.Init)
	}
	if s.RegistryAuth != "" {
		m.PullOptions = &ContainerSpec_PullOptions{RegistryAuth: s.RegistryAuth}
	}
	if s.Resources != nil && s.Resources.Limits != nil {
		m.PidsLimit = s.Resources.Limits.Pids
	}
	return m
}

func (x *ContainerSpec) api() *swarm.ContainerSpec {
	return &swarm.ContainerSpec{
		Image: x.GetImage(), Labels: table(x.GetLabels()), Command: list(x.GetCommand()), Args: list(x.GetArgs()),
		Hostname: x.GetHostname(), Env: list(x.GetEnv()), Dir: x.GetDir(), User: x.GetUser(), Groups: list(x.GetGroups()),
		Privileges: some(x.GetPrivileges(), (*Privileges).api),
		Init:       some(x.GetInit(), func(b *wrapperspb.BoolValue) *bool { v := b.GetValue(); return &v }),
		StopSignal: x.GetStopSignal(), TTY: x.GetTty(), OpenStdin: x.GetOpenStdin(), ReadOnly: x.GetReadOnly(),
		Mounts: each(x.GetMounts(), (*Mount).api), StopGracePeriod: apiDuration(x.GetStopGracePeriod()),
		Healthcheck: some(x.GetHealthcheck(), (*HealthConfig).api),
		Hosts:       list(x.GetHosts()), DNSConfig: some(x.GetDnsConfig(), (*ContainerSpec_DNSConfig).api),
		Secrets: each(x.GetSecrets(), (*SecretReference).api), Configs: each(x.GetConfigs(), (*ConfigReference).api),
		Isolation: nameOf(isolations(), x.GetIsolation()),
		Sysctls:   table(x.GetSysctls()), CapabilityAdd: list(x.GetCapabilityAdd()), CapabilityDrop: list(x.GetCapabilityDrop()),
		Ulimits: each(x.GetUlimits(), func(u *ContainerSpec_Ulimit) *container.Ulimit {
			return &container.Ulimit{Name: u.GetName(), Soft: u.GetSoft(), Hard: u.GetHard()}
		}),
		OomScoreAdj: x.GetOomScoreAdj(),
	}
}

func newDNS(d *swarm.DNSConfig) *ContainerSpec_DNSConfig {
	return &ContainerSpec_DNSConfig{
		Nameservers: each(d.Nameservers, netip.Addr.String), Search: list(d.Search), Options: list(d.Options),
	}
}

// api leaves out name servers that are no addresses.
func (x *ContainerSpec_DNSConfig) api() *swarm.DNSConfig {
	d := &swarm.DNSConfig{Search: list(x.GetSearch()), Options: list(x.GetOptions())}
	for _, s := range x.GetNameservers() {
		if a, err := netip.ParseAddr(s); err == nil {
			d.Nameservers = append(d.Nameservers, a)
		}
	}
	return d
}

func newHealth(h *container.HealthConfig) *HealthConfig {
	return &HealthConfig{
		Test: list(h.Test), Retries: narrow(h.Retries), Interval: newPeriod(h.Interval), Timeout: newPeriod(h.Timeout),
		StartPeriod: newPeriod(h.StartPeriod), StartInterval: newPeriod(h.StartInterval),
	}
}

func (x *HealthConfig) api() *container.HealthConfig {
	return &container.HealthConfig{
		Test: list(x.GetTest()), Retries: int(x.GetRetries()),
		Interval: x.GetInterval().AsDuration(), Timeout: x.GetTimeout().AsDuration(),
		StartPeriod: x.GetStartPeriod().AsDuration(), StartInterval: x.GetStartInterval().AsDuration(),
	}
}

func newSecretReference(r *swarm.SecretReference) *SecretReference {
	m := &SecretReference{SecretId: r.SecretID, SecretName: r.SecretName}
	if r.File != nil {
		m.Target = &SecretReference_File{File: newFileTarget((*swarm.ConfigReferenceFileTarget)(r.File))}
	}
	return m
}

func (x *SecretReference) api() *swarm.SecretReference {
	return &swarm.SecretReference{
		SecretID: x.GetSecretId(), SecretName: x.GetSecretName(),
		File: (*swarm.SecretReferenceFileTarget)(some(x.GetFile(), (*FileTarget).api)),
	}
}

func newConfigReference(r *swarm.ConfigReference) *ConfigReference {
	m := &ConfigReference{ConfigId: r.ConfigID, ConfigName: r.ConfigName}
	switch {
	case r.File != nil:
		m.Target = &ConfigReference_File{File: newFileTarget(r.File)}
	case r.Runtime != nil:
		m.Target = &ConfigReference_Runtime{Runtime: &RuntimeTarget{}}
	}
	return m
}

func (x *ConfigReference) api() *swarm.ConfigReference {
	return &swarm.ConfigReference{
		ConfigID: x.GetConfigId(), ConfigName: x.GetConfigName(), File: some(x.GetFile(), (*FileTarget).api),
		Runtime: some(x.GetRuntime(), func(*RuntimeTarget) *swarm.ConfigReferenceRuntimeTarget {
			return &swarm.ConfigReferenceRuntimeTarget{}
		}),
	}
}

func newFileTarget(f *swarm.ConfigReferenceFileTarget) *FileTarget {
	return &FileTarget{Name: f.Name, Uid: f.UID, Gid: f.GID, Mode: uint32(f.Mode)}
}

func (x *FileTarget) api() *swarm.ConfigReferenceFileTarget {
	return &swarm.ConfigReferenceFileTarget{
		Name: x.GetName(), UID: x.GetUid(), GID: x.GetGid(), Mode: os.FileMode(x.GetMode()),
	}
}
