package dockerapi

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"github.com/legion-swarm/legion/api"
)

// What clients of versions 1.24 to 1.44 mean and want to read, where that
// differs from 1.45. The rules are those of the API's version history: a field that a
// version does not have is ignored in its requests.

// wantedFor makes a container as a version's client means it.
func wantedFor(v Version, r *createRequest) error {
	h := r.HostConfig
	if v.before(40) && h.IpcMode == "" {
		h.IpcMode = container.IPCModeShareable
	}
	if v.before(42) {
		h.ConsoleSize = [2]uint{}
	}
	if v.before(43) {
		h.Annotations = nil
	}
	if v.before(44) {
		r.Healthcheck = healthFor(v, r.Healthcheck)
	}
	for i := range h.Mounts {
		if err := mountFor(v, &h.Mounts[i]); err != nil {
			return err
		}
	}
	return nil
}

func mountFor(v Version, m *mount.Mount) error {
	if v.before(45) && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" {
		return api.Errorf(api.Invalid, "VolumeOptions.Subpath needs API v1.45 or newer")
	}
	if v.before(42) { // what does not fit the mount's type was ignored, not refused
		if m.Type != mount.TypeBind {
			m.BindOptions = nil
		}
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
	}
	if !v.before(44) || m.Type != mount.TypeBind {
		return nil
	}
	var b mount.BindOptions
	if m.BindOptions != nil {
		b = *m.BindOptions
	}
	if b.ReadOnlyForceRecursive {
		return api.Errorf(api.Invalid, "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
	}
	b.ReadOnlyNonRecursive = m.ReadOnly
	if v.before(42) {
		b.CreateMountpoint = false
	}
	if v.before(40) {
		b.NonRecursive = false
	}
	if b != (mount.BindOptions{}) || m.BindOptions != nil {
		m.BindOptions = &b
	}
	return nil
}

func healthFor(v Version, h *container.HealthConfig) *container.HealthConfig {
	if h == nil || v.from(44) || h.StartInterval == 0 {
		return h
	}
	out := *h
	out.StartInterval = 0
	return &out
}

// serviceBefore144 drops from a wanted spec what the client's version does not
// have. The spec is the caller's own.
func serviceBefore144(v Version, s *swarm.ServiceSpec) {
	if v.before(41) {
		s.Mode.ReplicatedJob, s.Mode.GlobalJob = nil, nil
		if r := s.TaskTemplate.Resources; r != nil && r.Limits != nil {
			r.Limits.Pids = 0
		}
	}
	if p := s.TaskTemplate.Placement; p != nil && v.before(40) {
		p.MaxReplicas = 0
	}
	c := s.TaskTemplate.ContainerSpec
	if c == nil {
		return
	}
	c.Healthcheck = healthFor(v, c.Healthcheck)
	if c.Privileges != nil {
		c.Privileges.Seccomp, c.Privileges.AppArmor = nil, nil
	}
	if v.before(41) {
		c.CapabilityAdd, c.CapabilityDrop, c.Ulimits = nil, nil, nil
	}
	if v.before(40) {
		c.Sysctls = nil
		if c.Privileges != nil && c.Privileges.CredentialSpec != nil {
			c.Privileges.CredentialSpec.Config = ""
		}
		for _, f := range c.Configs {
			if f != nil {
				f.Runtime = nil
			}
		}
	}
}

// pinImage puts the image's digest into the spec of a client before 1.30, which
// leaves that to the daemon. What can't be found out is a warning. A rollback takes
// no image from the spec, so that nothing is asked.
func (s *Server) pinImage(c *call, spec *swarm.ServiceSpec, o *ServiceOptions) (warnings []string, err error) {
	cs := spec.TaskTemplate.ContainerSpec
	if c.version.from(30) || o.Rollback != "" || cs == nil || cs.Image == "" || strings.Contains(cs.Image, "@") {
		return nil, nil
	}
	auth, err := c.auth()
	if err != nil {
		return nil, err
	}
	d, err := s.Images.DistributionInspect(c.ctx, cs.Image, auth)
	if err != nil {
		return []string{"image " + cs.Image + " could not be accessed on a registry to record its digest: each node looks for it by itself, so nodes may run different versions of it (" + err.Error() + ")"}, nil
	}
	cs.Image += "@" + d.Descriptor.Digest.String()
	return nil, nil
}

// info125 is system.Info before 1.25.
type info125 struct {
	*info144
	ExecutionDriver string
}

// infoBefore144 has runtimes without a status and, before 1.25, the mere names of
// security options.
func infoBefore144(v Version, i *system.Info) {
	i.Runtimes = maps.Clone(i.Runtimes)
	for name, r := range i.Runtimes {
		r.Status = nil
		i.Runtimes[name] = r
	}
	if v.from(25) {
		return
	}
	i.SecurityOptions = slices.Clone(i.SecurityOptions)
	for n, o := range i.SecurityOptions {
		first, _, _ := strings.Cut(o, ",")
		i.SecurityOptions[n] = strings.TrimPrefix(first, "name=")
	}
}

// untagged is what an image without a name is called before 1.43.
const untagged = "<none>"

// image143 is image.Summary before 1.44.
type image143 struct {
	*image.Summary
	VirtualSize int64
}

func imageSummaryBefore144(v Version, s *image.Summary) *image143 {
	if v.before(43) {
		if len(s.RepoTags) == 0 {
			s.RepoTags = []string{untagged + ":" + untagged}
		}
		if len(s.RepoDigests) == 0 {
			s.RepoDigests = []string{untagged + "@" + untagged}
		}
	}
	return &image143{s, s.Size}
}

// imageDetails143 is what an inspected image had before 1.44.
type imageDetails143 struct {
	Created     string
	VirtualSize int64
	*legacyImage
}

func imageBefore144(i *legacyImage) *imageDetails143 {
	return &imageDetails143{cmp.Or(i.Created, "0001-01-01T00:00:00Z"), i.Size, i}
}

// allVolumes has unused volumes with a name pruned, too, as before 1.42.
func allVolumes(v Version, f api.Filters) api.Filters {
	if v.from(42) || len(f["all"]) > 0 {
		return f
	}
	f = maps.Clone(f)
	if f == nil {
		f = api.Filters{}
	}
	f["all"] = []string{"true"}
	return f
}

// networkMembers are the containers of a network, which lists told before 1.28.
func (s *Server) networkMembers(ctx context.Context, id string) (map[string]network.EndpointResource, error) {
	in, err := s.Networks.NetworkInspect(ctx, id, "", false)
	if api.Is(err, api.NotFound) { // it has just been removed
		return map[string]network.EndpointResource{}, nil
	}
	if err != nil {
		return nil, err
	}
	return someMap(in.Containers), nil
}
