package engine

import (
	"context"
	"runtime"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

// Info is what an engine can say of itself and its host.
type Info struct {
	Containers, Running, Paused, Stopped int
	Images                               int

	Hostname                   string
	Kernel                     string // release
	OperatingSystem, OSVersion string
	Architecture               string // as uname says it
	CPUs                       int
	Memory                     int64 // bytes
	CgroupVersion              string
	Storage                    string
	LogDriver                  string
	LogDrivers                 []string
	VolumeDrivers              []string
	NetworkDrivers             []string
	Security                   []string
	InitPath                   string
}

// Hostname is the node's name.
func (e *Engine) Hostname() string {
	if e.cfg.Name != "" {
		return e.cfg.Name
	}
	return e.host.hostname
}

// Platform is what the node's programs are built for, as nodes show it.
func (e *Engine) Platform() swarm.Platform {
	return swarm.Platform{Architecture: machine(), OS: "linux"}
}

// Info describes the engine.
func (e *Engine) Info(ctx context.Context) (*Info, error) {
	i := &Info{
		Hostname: e.Hostname(), Kernel: e.host.kernel, CPUs: runtime.NumCPU(), Memory: e.host.memory,
		CgroupVersion: "1", Storage: e.cfg.Storage, LogDriver: e.cfg.LogDriver, LogDrivers: []string{logfile.JSONFile, logfile.Local},
		VolumeDrivers: []string{localDriver}, NetworkDrivers: []string{"bridge", "host", "macvlan", "null", "overlay"},
		Security: []string{"name=seccomp,profile=builtin"}, InitPath: e.cfg.InitPath, Architecture: machine(),
	}
	if e.host.unified {
		i.CgroupVersion = "2"
		i.Security = append(i.Security, "name=cgroupns")
	}
	if e.host.apparmor {
		i.Security = append([]string{"name=apparmor"}, i.Security...)
	}
	i.OperatingSystem, i.OSVersion = osName()
	for _, c := range e.all() {
		i.Containers++
		r := c.snapshot()
		switch r.status() {
		case container.StateRunning, container.StateRestarting:
			i.Running++
		case container.StatePaused:
			i.Paused++
		default:
			i.Stopped++
		}
	}
	list, err := e.cfg.Images.List(ctx, ImageListOptions{})
	if err != nil {
		return nil, err
	}
	i.Images = len(list)
	return i, nil
}

// machine is the architecture as uname says it.
func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "386":
		return "i686"
	case "arm":
		return "armv7l"
	}
	return runtime.GOARCH
}

// ContainerUsage adds up what containers' writable layers take.
func (e *Engine) ContainerUsage(ctx context.Context) (*container.DiskUsage, error) {
	items, err := e.ContainerList(ctx, ContainerListOptions{All: true, Size: true})
	if err != nil {
		return nil, err
	}
	u := &container.DiskUsage{TotalCount: int64(len(items)), Items: items}
	for i := range items {
		s := &items[i]
		u.TotalSize += s.SizeRw
		switch s.State {
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			u.ActiveCount++
		default:
			u.Reclaimable += s.SizeRw
		}
	}
	return u, nil
}

// ImageUsage adds up what images take.
func (e *Engine) ImageUsage(ctx context.Context) (*image.DiskUsage, error) {
	items, err := e.cfg.Images.List(ctx, ImageListOptions{All: true, SharedSize: true})
	if err != nil {
		return nil, err
	}
	total, err := e.cfg.Images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]int64{}
	for _, c := range e.all() {
		used[c.snapshot().ImageID]++
	}
	u := &image.DiskUsage{TotalCount: int64(len(items)), Items: items, TotalSize: total, Reclaimable: total}
	for i := range items {
		items[i].Containers = used[items[i].ID]
		if items[i].Containers > 0 {
			u.ActiveCount++
			u.Reclaimable -= items[i].Size - max(0, items[i].SharedSize)
		}
	}
	u.Reclaimable = max(0, u.Reclaimable)
	return u, nil
}

// VolumeUsage adds up what volumes take.
func (e *Engine) VolumeUsage(_ context.Context) (*volume.DiskUsage, error) {
	all, err := e.volumes.filter(nil)
	if err != nil {
		return nil, err
	}
	u := &volume.DiskUsage{TotalCount: int64(len(all)), Items: []volume.Volume{}}
	for _, v := range all {
		d := e.volumes.describe(v)
		size := dirSize(d.Mountpoint)
		e.volumes.mu.Lock()
		refs := int64(len(v.users))
		e.volumes.mu.Unlock()
		d.UsageData = &volume.UsageData{RefCount: refs, Size: size}
		u.Items = append(u.Items, d)
		u.TotalSize += size
		if refs > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += size
		}
	}
	return u, nil
}

// ManagedTasks lists the values of a label among managed containers, sorted:
// the executor finds by it what an earlier daemon made.
func (e *Engine) ManagedTasks(label string) []string {
	var ids []string
	for _, c := range e.all() {
		r := c.snapshot()
		if v := r.Config.Labels[label]; r.Managed && v != "" && !slices.Contains(ids, v) {
			ids = append(ids, v)
		}
	}
	slices.Sort(ids)
	return ids
}

// Managed finds the managed container whose label has the value.
func (e *Engine) Managed(label, value string) (id string, err error) {
	for _, c := range e.all() {
		r := c.snapshot()
		if r.Managed && r.Config.Labels[label] == value {
			return c.id, nil
		}
	}
	return "", api.Errorf(api.NotFound, "no container has the label %s=%s", label, value)
}
