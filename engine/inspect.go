package engine

import (
	"context"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

// never is how Docker writes a time that has not come.
const never = "0001-01-01T00:00:00Z"

func timeString(t time.Time) string {
	if t.IsZero() {
		return never
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// ContainerInspect describes a container. size asks for the bytes it takes.
func (e *Engine) ContainerInspect(ctx context.Context, name string, size bool) (*container.InspectResponse, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	r := c.shown()
	cfg := *r.Config
	cfg.Image = r.ImageName
	if r.Config.Domainname != "" {
		cfg.Domainname = r.Config.Domainname
	}
	program, args := command(r.Config)
	if args == nil {
		args = []string{}
	}
	i := &container.InspectResponse{
		ID: c.id, Created: timeString(r.Created), Path: program, Args: args, State: c.state(&r), Image: r.ImageID,
		ResolvConfPath: filepath.Join(c.dir, resolvFile), HostnamePath: filepath.Join(c.dir, hostnameFile), HostsPath: filepath.Join(c.dir, hostsFile),
		Name: "/" + r.Name, RestartCount: r.RestartCount, Driver: e.cfg.Storage, Platform: "linux",
		HostConfig: r.Host, Mounts: mountSummary(r.Mounts), Config: &cfg,
		Storage: &storage.Storage{RootFS: &storage.RootFSStorage{Snapshot: &storage.RootFSStorageSnapshot{Name: e.cfg.Storage}}},
		NetworkSettings: &container.NetworkSettings{
			SandboxKey: r.Sandbox, Ports: r.Ports, Networks: r.networks(),
		},
	}
	if len(r.Host.Links) > 0 {
		host := *r.Host
		host.Links = e.shownLinks(&r)
		i.HostConfig = &host
	}
	if r.Sandbox != "" {
		i.NetworkSettings.SandboxID = c.id
	}
	if i.NetworkSettings.Ports == nil {
		i.NetworkSettings.Ports = network.PortMap{}
	}
	if exposed := r.exposed(); len(r.Ports) < len(exposed) {
		ports := network.PortMap{}
		for p := range exposed {
			ports[p] = nil
		}
		for p, b := range r.Ports {
			ports[p] = b
		}
		i.NetworkSettings.Ports = ports
	}
	if r.Host.LogConfig.Type == logfile.JSONFile {
		i.LogPath = c.logPath(logfile.JSONFile)
	}
	if s, err := e.parseSecurity(r.Host); err == nil {
		switch {
		case s.apparmor != "":
			i.AppArmorProfile = s.apparmor
		case e.host.apparmor && !r.Host.Privileged:
			i.AppArmorProfile = apparmorProfile
		}
	}
	c.mu.Lock()
	for id := range c.execs {
		i.ExecIDs = append(i.ExecIDs, id)
	}
	c.mu.Unlock()
	if size {
		rw, root, err := e.sizes(ctx, &r)
		if err != nil {
			return nil, err
		}
		i.SizeRw, i.SizeRootFs = &rw, &root
	}
	return i, nil
}

// sizes returns the bytes of the writable layer, and with the image's.
func (e *Engine) sizes(ctx context.Context, r *record) (rw, root int64, err error) {
	rw, err = e.cfg.Runtime.Usage(ctx, r.ID)
	if err != nil && !api.Is(err, api.NotFound) {
		return 0, 0, err
	}
	img, err := e.cfg.Images.Inspect(ctx, r.ImageID, ImageInspectOptions{})
	if err != nil {
		return rw, rw, nil //nolint:nilerr // the image may be gone: then only its own size is known
	}
	return rw, rw + img.Size, nil
}

func (c *ctr) state(r *record) *container.State {
	s := r.status()
	st := &container.State{
		Status: s, Running: r.Phase == phaseRunning || r.Restarting, Paused: r.Paused, Restarting: r.Restarting,
		OOMKilled: r.OOMKilled, Dead: r.Phase == phaseDead, Pid: r.Pid, ExitCode: r.ExitCode, Error: r.Error,
		StartedAt: timeString(r.StartedAt), FinishedAt: timeString(r.FinishedAt),
	}
	c.mu.Lock()
	h := c.health
	c.mu.Unlock()
	if h != nil {
		st.Health = h.report()
	}
	return st
}

// ContainerTTY tells how a container's attach and log streams are framed.
func (e *Engine) ContainerTTY(_ context.Context, name string) (bool, error) {
	c, err := e.find(name)
	if err != nil {
		return false, err
	}
	return c.snapshot().Config.Tty, nil
}
