package dockerapi

import (
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
)

// What older versions of the API say differently. The rules are those of the
// API's version history; fields that shadow an embedded one replace it.

// legacyCommit is system.Commit before 1.49.
type legacyCommit struct{ ID, Expected string }

type info144 struct {
	*system.Info
	ContainerdCommit legacyCommit
	RuncCommit       legacyCommit
	InitCommit       legacyCommit
	info148
}

type info148 struct {
	BridgeNfIptables  bool `json:"BridgeNfIptables"`
	BridgeNfIP6tables bool `json:"BridgeNfIp6tables"`
	KernelMemoryTCP   bool
}

func infoFor(v Version, i *system.Info) any {
	out := *i
	out.DriverStatus = some(out.DriverStatus)
	out.Labels = some(out.Labels)
	out.CDISpecDirs = some(out.CDISpecDirs)
	out.SecurityOptions = some(out.SecurityOptions)
	if out.Swarm.Cluster != nil {
		out.Swarm.Cluster = shownCluster(out.Swarm.Cluster)
	}
	if v.before(53) {
		out.NRI = nil
	}
	if v.before(50) {
		out.DiscoveredDevices = nil
	}
	if v.before(46) {
		out.Containerd = nil
	}
	if v.from(49) {
		return &out
	}
	out.FirewallBackend = nil
	if v.before(44) {
		infoBefore144(v, &out)
	}
	both := func(c system.Commit) legacyCommit { return legacyCommit{c.ID, c.ID} }
	old := &info144{Info: &out, ContainerdCommit: both(i.ContainerdCommit), RuncCommit: both(i.RuncCommit), InitCommit: both(i.InitCommit)}
	if v.before(25) {
		return &info125{old, "<not supported>"}
	}
	return old
}

// legacyEvent is events.Message before 1.52.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	*events.Message
}

func eventFor(v Version, m *events.Message) any {
	if v.from(52) || m.Type != events.ContainerEventType && m.Type != events.ImageEventType {
		return m
	}
	e := &legacyEvent{Status: string(m.Action), ID: m.Actor.ID, Message: m}
	if m.Type == events.ContainerEventType {
		e.From = m.Actor.Attributes["image"]
	}
	return e
}

// legacyUsage is what /system/df says before 1.53.
type legacyUsage struct {
	LayersSize int64
	Images     any // []image.Summary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
}

func diskUsageFor(v Version, u *system.DiskUsage, verbose, legacy bool) any {
	if !legacy {
		return u
	}
	var old legacyUsage
	out := *u
	if u.ImageUsage != nil {
		part := *u.ImageUsage
		old.LayersSize, old.Images = part.TotalSize, usedImagesFor(v, part.Items)
		part.Items = nil
		out.ImageUsage = &part
	}
	if u.ContainerUsage != nil {
		part := *u.ContainerUsage
		old.Containers = some(part.Items)
		part.Items = nil
		out.ContainerUsage = &part
	}
	if u.VolumeUsage != nil {
		part := *u.VolumeUsage
		old.Volumes = some(part.Items)
		part.Items = nil
		out.VolumeUsage = &part
	}
	if u.BuildCacheUsage != nil {
		part := *u.BuildCacheUsage
		old.BuildCache = some(part.Items)
		part.Items = nil
		out.BuildCacheUsage = &part
	}
	if v.before(52) {
		return &old
	}
	return struct {
		legacyUsage
		*system.DiskUsage
	}{old, &out}
}

func usedImagesFor(v Version, all []image.Summary) any {
	if v.from(44) {
		return some(all)
	}
	old := make([]*image143, len(all))
	for i := range all {
		s := all[i]
		old[i] = imageSummaryBefore144(v, &s)
	}
	return old
}

// legacyNetworkSettings is container.NetworkSettings before 1.52: the default
// network's endpoint is repeated at the top.
type legacyNetworkSettings struct {
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []netip.Prefix
	SecondaryIPv6Addresses []netip.Prefix
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
	*container.NetworkSettings
}

type legacyContainer struct {
	*container.InspectResponse
	Config          *legacyConfig
	NetworkSettings *legacyNetworkSettings
}

// legacyConfig always has OnBuild.
type legacyConfig struct {
	*container.Config
	OnBuild []string
}

func inspectFor(v Version, in *container.InspectResponse) any {
	r := *in
	r.Mounts = some(r.Mounts)
	r.Args = some(r.Args)
	if v.before(48) {
		r.ImageManifestDescriptor = nil
	}
	if v.from(52) {
		return &r
	}
	if r.GraphDriver == nil {
		r.GraphDriver = &storage.DriverData{Name: r.Driver}
	}
	r.Storage = nil
	if v.before(45) && r.NetworkSettings != nil {
		r.NetworkSettings = withShortID(r.ID, r.NetworkSettings)
	}
	out := &legacyContainer{InspectResponse: &r}
	if r.Config != nil {
		out.Config = &legacyConfig{r.Config, r.Config.OnBuild}
	}
	if ns := r.NetworkSettings; ns != nil {
		l := &legacyNetworkSettings{NetworkSettings: ns}
		if e := ns.Networks[network.NetworkBridge]; e != nil {
			l.EndpointID, l.Gateway, l.IPAddress, l.IPPrefixLen = e.EndpointID, e.Gateway, e.IPAddress, e.IPPrefixLen
			l.GlobalIPv6Address, l.GlobalIPv6PrefixLen, l.IPv6Gateway, l.MacAddress = e.GlobalIPv6Address, e.GlobalIPv6PrefixLen, e.IPv6Gateway, e.MacAddress
		}
		out.NetworkSettings = l
	}
	return out
}

// withShortID has the container's short id among its aliases in users' networks,
// where clients before 1.45 look for it.
func withShortID(id string, in *container.NetworkSettings) *container.NetworkSettings {
	short := id[:min(12, len(id))]
	ns := *in
	ns.Networks = make(map[string]*network.EndpointSettings, len(in.Networks))
	for name, e := range in.Networks {
		if e != nil && container.NetworkMode(name).IsUserDefined() && !slices.Contains(e.Aliases, short) {
			e = e.Copy()
			e.Aliases = append(e.Aliases, short)
		}
		ns.Networks[name] = e
	}
	return &ns
}

func summaryFor(v Version, in *container.Summary) *container.Summary {
	s := *in
	s.Names, s.Ports, s.Mounts, s.Labels = some(s.Names), some(s.Ports), some(s.Mounts), someMap(s.Labels)
	if v.before(52) {
		s.Health = nil
	}
	if v.before(48) {
		s.ImageManifestDescriptor = nil
	}
	if v.before(46) {
		s.HostConfig.Annotations = nil
	}
	return &s
}

// legacyImageConfig is an image's config before 1.52, with all its fields.
type legacyImageConfig struct {
	User         string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Env          []string
	Cmd          []string
	Healthcheck  any  `json:",omitempty"`
	ArgsEscaped  bool `json:",omitempty"`
	Volumes      map[string]struct{}
	WorkingDir   string
	Entrypoint   []string
	OnBuild      []string
	Labels       map[string]string
	StopSignal   string   `json:",omitempty"`
	Shell        []string `json:",omitempty"`
}

// legacyImageConfig144 adds what was left out in 1.50: never set in an image.
type legacyImageConfig144 struct {
	Hostname, Domainname                    string
	AttachStdin, AttachStdout, AttachStderr bool
	Tty, OpenStdin, StdinOnce               bool
	Image                                   string
	*legacyImageConfig
}

type legacyImage struct {
	Parent, Comment, DockerVersion, Author string
	Config                                 any
	*image.InspectResponse
}

func imageFor(v Version, in *image.InspectResponse) any {
	i := *in
	i.RepoTags, i.RepoDigests = some(i.RepoTags), some(i.RepoDigests)
	if v.before(53) {
		i.Identity = nil
	}
	if v.before(48) {
		i.Descriptor, i.Manifests = nil, nil
	}
	if v.from(52) {
		return &i
	}
	out := &legacyImage{Comment: i.Comment, Author: i.Author, InspectResponse: &i}
	if c := i.Config; c != nil {
		old := &legacyImageConfig{
			User: c.User, ExposedPorts: c.ExposedPorts, Env: c.Env, Cmd: c.Cmd, ArgsEscaped: c.ArgsEscaped, Volumes: c.Volumes, //nolint:staticcheck // as it is in the image
			WorkingDir: c.WorkingDir, Entrypoint: c.Entrypoint, OnBuild: c.OnBuild, Labels: c.Labels, StopSignal: c.StopSignal, Shell: c.Shell,
		}
		if c.Healthcheck != nil {
			old.Healthcheck = c.Healthcheck
		}
		out.Config = old
		if v.before(50) {
			out.Config = &legacyImageConfig144{legacyImageConfig: old}
		}
	}
	if v.before(44) {
		return imageBefore144(out)
	}
	return out
}

func imageSummaryFor(v Version, in *image.Summary) any {
	s := *in
	s.RepoTags, s.RepoDigests = some(s.RepoTags), some(s.RepoDigests)
	if v.before(51) {
		s.Containers = -1
	}
	if v.before(48) {
		s.Descriptor = nil
	}
	if v.before(47) {
		s.Manifests = nil
	}
	if v.before(44) {
		return imageSummaryBefore144(v, &s)
	}
	return &s
}

// taskSpecFor leaves out what a version of the API does not know. The spec is
// shared and never edited: what changes is copied.
func taskSpecFor(v Version, s swarm.TaskSpec) swarm.TaskSpec {
	if v.before(52) && s.Resources != nil && (s.Resources.SwapBytes != nil || s.Resources.MemorySwappiness != nil) {
		r := *s.Resources
		r.SwapBytes, r.MemorySwappiness = nil, nil
		s.Resources = &r
	}
	return s
}

// serviceFor has what all clients are told: labels, if only none, and that the
// tasks are containers.
func serviceFor(v Version, in *swarm.Service) *swarm.Service {
	s := *in
	shownServiceSpec(&s.Spec)
	s.Spec.TaskTemplate = taskSpecFor(v, s.Spec.TaskTemplate)
	if s.PreviousSpec != nil {
		p := *s.PreviousSpec
		shownServiceSpec(&p)
		p.TaskTemplate = taskSpecFor(v, p.TaskTemplate)
		s.PreviousSpec = &p
	}
	return &s
}

// wishedFor drops from a wanted spec the fields that the client's version
// does not have, as Docker does: they are ignored there, not refused.
func wishedFor(v Version, s *swarm.ServiceSpec) {
	settle(s)
	s.TaskTemplate = taskSpecFor(v, s.TaskTemplate)
	if v.before(44) {
		serviceBefore144(v, s)
	}
	if v.before(46) && s.TaskTemplate.ContainerSpec != nil {
		cs := s.TaskTemplate.ContainerSpec
		cs.OomScoreAdj = 0
		for i := range cs.Mounts {
			if cs.Mounts[i].TmpfsOptions != nil {
				cs.Mounts[i].TmpfsOptions.Options = nil
			}
		}
	}
}
