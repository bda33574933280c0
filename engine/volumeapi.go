package engine

import (
	"context"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

func (vs *volumes) describe(v *vol) volume.Volume {
	return volume.Volume{
		Name: v.Name, Driver: localDriver, Mountpoint: vs.path(v.Name), Scope: "local",
		CreatedAt: v.Created.Format(time.RFC3339), Labels: v.Labels, Options: v.Options,
	}
}

func (e *Engine) volumeEvent(action events.Action, name string, more map[string]string) {
	a := map[string]string{"driver": localDriver}
	for k, v := range more {
		a[k] = v
	}
	e.Emit(events.VolumeEventType, action, name, a)
}

// VolumeCreate makes a volume, or returns the one of that name.
func (e *Engine) VolumeCreate(_ context.Context, r *volume.CreateRequest) (*volume.Volume, error) {
	if r.ClusterVolumeSpec != nil {
		return nil, api.Errorf(api.Unimplemented, "cluster volumes are not served: leave ClusterVolumeSpec out")
	}
	v, fresh, err := e.volumes.create(r.Name, r.Driver, r.DriverOpts, r.Labels)
	if err != nil {
		return nil, err
	}
	if fresh {
		e.volumeEvent(events.ActionCreate, v.Name, nil)
	}
	d := e.volumes.describe(v)
	return &d, nil
}

// VolumeInspect describes a volume.
func (e *Engine) VolumeInspect(_ context.Context, name string) (*volume.Volume, error) {
	v, err := e.volumes.get(name)
	if err != nil {
		return nil, err
	}
	d := e.volumes.describe(v)
	return &d, nil
}

// VolumeList lists volumes by name. Filters: dangling, driver, label, name.
func (e *Engine) VolumeList(_ context.Context, f api.Filters) (*volume.ListResponse, error) {
	keep, err := e.volumes.filter(f, "dangling", "driver", "label", "name")
	if err != nil {
		return nil, err
	}
	list := &volume.ListResponse{Volumes: []volume.Volume{}}
	for _, v := range keep {
		list.Volumes = append(list.Volumes, e.volumes.describe(v))
	}
	return list, nil
}

// filter returns the volumes that match, by name.
func (vs *volumes) filter(f api.Filters, known ...string) ([]*vol, error) {
	for k := range f {
		if !slices.Contains(known, k) {
			return nil, api.Errorf(api.Invalid, "invalid filter '%s'", k)
		}
	}
	dangling, err := boolFilter(f, "dangling")
	if err != nil {
		return nil, err
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	var list []*vol
	for _, v := range vs.all {
		if dangling != nil && *dangling != (len(v.users) == 0) ||
			len(f["driver"]) > 0 && !slices.Contains(f["driver"], localDriver) ||
			len(f["name"]) > 0 && !slices.ContainsFunc(f["name"], func(s string) bool { return strings.Contains(v.Name, s) }) ||
			!hasLabels(v.Labels, f["label"]) || len(f["label!"]) > 0 && hasLabels(v.Labels, f["label!"]) {
			continue
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b *vol) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// boolFilter reads a filter that is true or false; nil when it is not given.
func boolFilter(f api.Filters, key string) (*bool, error) {
	values := f[key]
	if len(values) == 0 {
		return nil, nil
	}
	b, err := strconv.ParseBool(values[0])
	if err != nil || len(values) > 1 {
		return nil, api.Errorf(api.Invalid, "invalid filter '%s=%s'", key, strings.Join(values, ","))
	}
	return &b, nil
}

// hasLabels reports whether all of KEY or KEY=VALUE hold.
func hasLabels(labels map[string]string, wanted []string) bool {
	for _, w := range wanted {
		k, v, valued := strings.Cut(w, "=")
		if got, ok := labels[k]; !ok || valued && got != v {
			return false
		}
	}
	return true
}

// VolumeRemove removes a volume that no container names. With force, one that
// does not exist is no error.
func (e *Engine) VolumeRemove(_ context.Context, name string, force bool) error {
	if err := e.volumes.remove(name); err != nil {
		if force && api.Is(err, api.NotFound) {
			return nil
		}
		return err
	}
	e.volumeEvent(events.ActionDestroy, name, nil)
	return nil
}

// VolumePrune removes volumes that no container names: anonymous ones, or all
// with the filter all=true. Filters: all, label, label!.
func (e *Engine) VolumePrune(_ context.Context, f api.Filters) (*volume.PruneReport, error) {
	everything, err := boolFilter(f, "all")
	if err != nil {
		return nil, err
	}
	list, err := e.volumes.filter(f, "all", "label", "label!")
	if err != nil {
		return nil, err
	}
	report := &volume.PruneReport{VolumesDeleted: []string{}}
	for _, v := range list {
		_, anonymous := v.Labels[labelAnonymous]
		if !anonymous && (everything == nil || !*everything) || len(v.Options) > 0 && e.volumes.inUse(v) {
			continue
		}
		size := dirSize(e.volumes.path(v.Name))
		if err := e.volumes.remove(v.Name); err != nil {
			if api.Is(err, api.Conflict) || api.Is(err, api.NotFound) {
				continue
			}
			return nil, err
		}
		e.volumeEvent(events.ActionDestroy, v.Name, nil)
		report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
		report.SpaceReclaimed += uint64(size)
	}
	e.Emit(events.VolumeEventType, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(report.SpaceReclaimed, 10)})
	return report, nil
}

func (vs *volumes) inUse(v *vol) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return len(v.users) > 0
}

// dirSize adds up the blocks of the files below dir, each once.
func dirSize(dir string) int64 {
	var n int64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what vanished meanwhile has no size
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && (d.IsDir() || !seen[st.Ino]) {
			seen[st.Ino] = true
			n += st.Blocks * 512
		}
		return nil
	})
	return n
}
