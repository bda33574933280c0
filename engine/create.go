package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

// ContainerCreate makes a container, with its record, volumes and writable
// root file system; nothing runs yet. On error nothing is left behind, but for
// named volumes.
func (e *Engine) ContainerCreate(ctx context.Context, o CreateOptions) (*container.CreateResponse, error) {
	if o.Config == nil {
		return nil, api.Errorf(api.Invalid, "config cannot be empty in order to create a container")
	}
	if o.Name != "" {
		if err := checkName("container", o.Name); err != nil {
			return nil, err
		}
	}
	rec, warnings, err := e.plan(ctx, &o)
	if err != nil {
		return nil, err
	}
	if rec.Name, err = e.reserve(o.Name, rec.ID); err != nil {
		return nil, err
	}
	c := e.newContainer(*rec)
	if err := c.make(ctx, &o); err != nil {
		e.unreserve(rec.Name, rec.ID)
		return nil, err
	}
	e.mu.Lock()
	e.containers[c.id] = c
	e.mu.Unlock()
	c.event(events.ActionCreate, nil)
	return &container.CreateResponse{ID: c.id, Warnings: warnings}, nil
}

// plan decides all that a container will be.
func (e *Engine) plan(ctx context.Context, o *CreateOptions) (*record, []string, error) {
	host := container.HostConfig{}
	if o.Host != nil {
		host = *o.Host
	}
	rec := &record{ID: newID(), Created: e.cfg.Now().UTC(), Managed: o.Managed, Phase: phaseMaking, ImageName: o.Config.Image}
	cfg := *o.Config
	if cfg.Image == "" {
		return nil, nil, api.Errorf(api.Invalid, "no image specified: Image is empty")
	}
	img, err := e.cfg.Images.Resolve(ctx, cfg.Image)
	if err != nil {
		return nil, nil, err
	}
	rec.ImageID, rec.Platform = img.ID, img.Platform
	if o.Platform != nil {
		rec.Platform = platformString(o.Platform)
	}
	rec.Config = mergeImage(&cfg, img)
	if program, _ := command(rec.Config); program == "" {
		return nil, nil, api.Errorf(api.Invalid, "no command specified")
	}
	warnings := e.completeHost(rec.Config, &host)
	rec.Host = &host
	if err := e.validate(rec.Config, &host); err != nil {
		return nil, nil, err
	}
	if host.NetworkMode.IsContainer() && len(o.Config.ExposedPorts) > 0 { // those of the image are no conflict
		return nil, nil, api.Errorf(api.Invalid, "conflicting options: port exposing and the container type network mode")
	}
	if rec.Endpoints, err = planEndpoints(&host, o.Networking); err != nil {
		return nil, nil, err
	}
	for net, ep := range rec.Endpoints {
		if err := e.cfg.Networks.CheckAddresses(net, ep.IPAMConfig); err != nil {
			return nil, nil, err
		}
	}
	if rec.Config.Hostname == "" && !host.UTSMode.IsHost() && !host.NetworkMode.IsContainer() {
		if host.NetworkMode.IsHost() {
			rec.Config.Hostname = e.Hostname()
		} else {
			rec.Config.Hostname = rec.ID[:12]
		}
	}
	from, err := e.volumesFrom(host.VolumesFrom)
	if err != nil {
		return nil, nil, err
	}
	if rec.Mounts, err = planMounts(rec.Config, &host, from); err != nil {
		return nil, nil, err
	}
	for i := range rec.Mounts {
		if err := rec.Mounts[i].checkSource(); err != nil {
			return nil, nil, err
		}
	}
	return rec, warnings, e.checkOthers(rec)
}

func platformString(p *ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.OS == "" {
		s = "linux" + s
	}
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// findOther finds a container that another one is made with. That it is not there
// is Invalid: by NotFound Docker's clients understand that the image is missing, and
// pull it.
func (e *Engine) findOther(name string) (*ctr, error) {
	c, err := e.find(name)
	if api.Is(err, api.NotFound) {
		err = api.Errorf(api.Invalid, "%w", err)
	}
	return c, err
}

// checkOthers refuses modes that name containers which are not there, and links
// outside of networks of one's own; it gives the one whose network is shared by id, and
// the container that one's host name.
func (e *Engine) checkOthers(r *record) error {
	h := r.Host
	others := []string{h.NetworkMode.ConnectedContainer(), h.PidMode.Container(), h.IpcMode.Container()}
	for i, name := range others {
		if name == "" {
			continue
		}
		c, err := e.findOther(name)
		if err != nil {
			return err
		}
		if i == 0 {
			h.NetworkMode = container.NetworkMode("container:" + c.id)
			other := c.snapshot().Config
			r.Config.Hostname, r.Config.Domainname = other.Hostname, other.Domainname
		}
	}
	if h.NetworkMode.IsUserDefined() {
		return nil // links are names there, which may get their meaning later
	}
	for _, l := range h.Links {
		name, alias := splitLink(l)
		if name == "" || strings.Count(l, ":") > 1 || strings.ContainsFunc(alias, notText) {
			return api.Errorf(api.Invalid, "bad format for links: %s", l)
		}
		c, err := e.findOther(name)
		if err != nil {
			return api.Errorf(api.ClassOf(err), "could not get container for %s: %w", name, err)
		}
		if c.snapshot().Host.NetworkMode.IsHost() {
			return api.Errorf(api.Invalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
	}
	return nil
}

// completeHost fills in what the engine's configuration says by default.
func (e *Engine) completeHost(c *container.Config, h *container.HostConfig) (warnings []string) {
	warnings = []string{}
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = network.NetworkBridge
	}
	if c.NetworkDisabled {
		h.NetworkMode = network.NetworkNone
	}
	if h.PidsLimit != nil && *h.PidsLimit <= 0 { // two ways to say that there is none
		h.PidsLimit = nil
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = e.cfg.LogDriver
		if len(h.LogConfig.Config) == 0 {
			h.LogConfig.Config = maps.Clone(e.cfg.LogOpts)
		}
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.IpcMode == "" {
		h.IpcMode = e.cfg.IpcMode
	}
	if h.CgroupnsMode == "" {
		h.CgroupnsMode = e.cfg.CgroupnsMode
		if h.CgroupnsMode == "" {
			h.CgroupnsMode = container.CgroupnsModeHost
			if e.host.unified && !h.Privileged {
				h.CgroupnsMode = container.CgroupnsModePrivate
			}
		}
	}
	if h.ShmSize == 0 {
		h.ShmSize = e.cfg.ShmSize
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = h.Memory * 2
	}
	if h.Runtime == "" {
		h.Runtime = "runc"
	}
	if h.Privileged {
		h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
	} else {
		if h.MaskedPaths == nil {
			h.MaskedPaths = maskedPaths()
		}
		if h.ReadonlyPaths == nil {
			h.ReadonlyPaths = readonlyPaths()
		}
	}
	if h.NetworkMode.IsHost() && len(h.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	if h.OomKillDisable != nil && *h.OomKillDisable && h.Memory == 0 {
		warnings = append(warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	return warnings
}

// planEndpoints says which networks a container is to join.
func planEndpoints(h *container.HostConfig, n *network.NetworkingConfig) (map[string]*network.EndpointSettings, error) {
	eps := map[string]*network.EndpointSettings{}
	if n != nil {
		eps = endpointsCopy(n.EndpointsConfig)
	}
	mode := string(h.NetworkMode)
	if h.NetworkMode.IsContainer() {
		if len(eps) > 0 {
			return nil, api.Errorf(api.Invalid, "conflicting options: cannot attach a container that shares another's network to networks of its own")
		}
		return eps, nil
	}
	if d, ok := eps[network.NetworkDefault]; ok && mode == network.NetworkBridge {
		delete(eps, network.NetworkDefault)
		eps[mode] = d
	}
	if eps[mode] == nil {
		if len(eps) > 0 && !h.NetworkMode.IsBridge() || len(eps) == 0 {
			eps[mode] = &network.EndpointSettings{}
		}
	}
	if (h.NetworkMode.IsHost() || h.NetworkMode.IsNone()) && len(eps) > 1 {
		return nil, api.Errorf(api.Invalid, "container cannot be connected to multiple networks with one of the networks in %s mode", mode)
	}
	return eps, nil
}

// make puts a planned container on the disk.
func (c *ctr) make(ctx context.Context, o *CreateOptions) (err error) {
	e := c.e
	var made []string // anonymous volumes
	defer func() {
		if err == nil {
			return
		}
		bg := context.WithoutCancel(ctx)
		for i := range c.rec.Mounts {
			e.volumes.unuse(c.rec.Mounts[i].Name, c.id)
		}
		for _, v := range made {
			err = errors.Join(err, e.volumes.remove(v))
		}
		err = errors.Join(err, e.removeFiles(c.id), e.cfg.Runtime.RemoveRootfs(bg, c.id), os.RemoveAll(c.dir))
	}()
	if err := os.Mkdir(c.dir, 0o710); err != nil {
		return fmt.Errorf("engine: container %s: %w", c.id, err)
	}
	// The folder stands before anything else: what is cut off after this is
	// found by it and removed.
	size, err := storageSize(c.rec.Host.StorageOpt)
	if err != nil {
		return err
	}
	if err := e.cfg.Runtime.MakeRootfs(ctx, c.id, c.rec.ImageID, c.rec.Platform, size); err != nil {
		return err
	}
	if c.rec.Files, err = e.putFiles(c.id, o.Files); err != nil {
		return err
	}
	fresh, err := c.makeVolumes(&made)
	if err != nil {
		return err
	}
	if len(fresh) > 0 {
		if err := c.copyUp(ctx, fresh); err != nil {
			return err
		}
	}
	return c.change(func(r *record) { r.Phase = phaseCreated })
}

func storageSize(opts map[string]string) (int64, error) {
	s, ok := opts["size"]
	if !ok {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n <= 0 {
		return 0, api.Errorf(api.Invalid, "storage option size: %q is not a positive size", s)
	}
	return n, nil
}

// makeVolumes makes the volumes that are missing and claims all. It returns
// the mounts of volumes that take the image's content.
func (c *ctr) makeVolumes(made *[]string) ([]mountPoint, error) {
	e := c.e
	var fill []mountPoint
	for i := range c.rec.Mounts {
		m := &c.rec.Mounts[i]
		if m.Type != mount.TypeVolume {
			continue
		}
		var opts, labels map[string]string
		if o := m.Spec.VolumeOptions; o != nil {
			labels = o.Labels
			if o.DriverConfig != nil {
				opts = o.DriverConfig.Options
			}
		}
		v, fresh, err := e.volumes.create(m.Name, m.Driver, opts, labels)
		if err != nil {
			return nil, err
		}
		if m.Name == "" {
			*made = append(*made, v.Name)
		}
		if fresh {
			e.volumeEvent(events.ActionCreate, v.Name, nil)
		}
		m.Name, m.Source = v.Name, e.volumes.path(v.Name)
		if m.Mode == "" && m.Spec.Type == mount.TypeVolume {
			m.Mode = "z"
		}
		if err := e.volumes.use(v.Name, c.id); err != nil {
			return nil, err
		}
		sub := m.Spec.VolumeOptions != nil && m.Spec.VolumeOptions.Subpath != ""
		if !m.NoCopy && !sub && len(v.Options) == 0 && emptyDir(m.Source) {
			fill = append(fill, *m)
		}
	}
	return fill, nil
}

func emptyDir(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // nothing was written
	names, _ := f.Readdirnames(1)
	return len(names) == 0
}

// The folder of files given by value is on a tmpfs.

func (e *Engine) filesDir(id string) string { return filepath.Join(e.cfg.ExecRoot, "files", id) }

// putFiles writes files where only memory holds them.
func (e *Engine) putFiles(id string, files []File) (_ []fileRecord, err error) {
	if len(files) == 0 {
		return nil, nil
	}
	if err := e.ensureMemory(filepath.Join(e.cfg.ExecRoot, "files")); err != nil {
		return nil, err
	}
	dir := e.filesDir(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	list := make([]fileRecord, 0, len(files))
	for i := range files {
		f := &files[i]
		if err := checkTarget(f.Path); err != nil {
			return nil, err
		}
		name := strconv.Itoa(i)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			return nil, fmt.Errorf("engine: file %s for container %s: %w", f.Path, id, err)
		}
		if err := errors.Join(os.Chown(path, f.UID, f.GID), os.Chmod(path, os.FileMode(f.Mode).Perm())); err != nil {
			return nil, fmt.Errorf("engine: file %s for container %s: %w", f.Path, id, err)
		}
		list = append(list, fileRecord{Path: filepath.Clean(f.Path), Source: name})
	}
	return list, nil
}

func (e *Engine) removeFiles(id string) error { return os.RemoveAll(e.filesDir(id)) }
