package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"github.com/legion-swarm/legion/api"
)

// ContainerRemove removes a container, and its anonymous volumes if asked to.
// A running one is refused, or killed with force.
func (e *Engine) ContainerRemove(ctx context.Context, name string, o RemoveOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	c.cancelRestart()
	c.mu.Lock()
	r := c.run
	state := c.rec.status()
	c.mu.Unlock()
	if r != nil && !o.Force {
		if state == container.StatePaused {
			return api.Errorf(api.Conflict, "cannot remove container %q: container is paused and must be unpaused first", name)
		}
		return api.Errorf(api.Conflict, "cannot remove container %q: container is running: stop the container before removing or force remove", name)
	}
	if r != nil {
		c.note(func(r *record) { r.Stopped = true })
		if err := c.kill(ctx, r); err != nil {
			return err
		}
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	c.mu.Lock()
	gone, again := c.gone, c.run
	c.mu.Unlock()
	if gone {
		return api.Errorf(api.NotFound, "No such container: %s", name)
	}
	if again != nil {
		return api.Errorf(api.Conflict, "cannot remove container %q: it was started again meanwhile", name)
	}
	return c.remove(context.WithoutCancel(ctx), o.Volumes)
}

// remove takes a stopped container apart. Cut off, it is gone on after a
// restart: what is marked is removed.
func (c *ctr) remove(ctx context.Context, volumes bool) error {
	e := c.e
	if err := c.change(func(r *record) { r.Phase, r.Restarting = phaseRemoving, false }); err != nil {
		return err
	}
	rec := c.snapshot()
	c.closeLog()
	err := errors.Join(
		e.cfg.Runtime.Delete(ctx, c.id),
		e.cfg.Networks.Leave(ctx, c.id),
		e.cfg.Runtime.RemoveRootfs(ctx, c.id),
		e.removeFiles(c.id),
	)
	if err == nil {
		err = os.RemoveAll(c.dir)
	}
	if err != nil {
		c.note(func(r *record) { r.Phase, r.Error = phaseDead, err.Error() })
		return fmt.Errorf("container %s could not be removed whole; try again: %w", c.id, err)
	}
	if len(rec.Files) > 0 {
		e.dropMemory(filepath.Join(e.cfg.ExecRoot, "files"))
	}
	e.mu.Lock()
	delete(e.containers, c.id)
	if e.names[rec.Name] == c.id {
		delete(e.names, rec.Name)
	}
	for id, x := range e.execs {
		if x.c == c {
			delete(e.execs, id)
		}
	}
	e.mu.Unlock()
	e.dropVolumes(&rec, volumes)
	c.mu.Lock()
	c.gone = true
	ws := c.takeWaiters(true)
	c.mu.Unlock()
	c.event(events.ActionDestroy, nil)
	answer(ws, rec.ExitCode, "")
	return nil
}

// dropVolumes lets go of a removed container's volumes, and removes those that
// nobody named if asked to.
func (e *Engine) dropVolumes(rec *record, remove bool) {
	for i := range rec.Mounts {
		m := &rec.Mounts[i]
		if m.Type != mount.TypeVolume {
			continue
		}
		e.volumes.unuse(m.Name, rec.ID)
		if !remove || !m.Anonymous {
			continue
		}
		err := e.volumes.remove(m.Name)
		switch {
		case err == nil:
			e.volumeEvent(events.ActionDestroy, m.Name, nil)
		case !api.Is(err, api.Conflict) && !api.Is(err, api.NotFound): // others may use it through volumes-from
			e.cfg.Log.Error("an anonymous volume could not be removed", "volume", m.Name, "error", err)
		}
	}
}

// ContainerRename gives a container another name.
func (e *Engine) ContainerRename(ctx context.Context, name, newName string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	newName = strings.TrimPrefix(newName, "/")
	if newName == "" {
		return api.Errorf(api.Invalid, "Neither old nor new names may be empty")
	}
	if err := checkName("container", newName); err != nil {
		return err
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	old := c.snapshot().Name
	if old == newName {
		return api.Errorf(api.Invalid, "Renaming a container with the same name as its current name")
	}
	if _, err := e.reserve(newName, c.id); err != nil {
		return err
	}
	if err := c.change(func(r *record) { r.Name = newName }); err != nil {
		c.mu.Lock()
		c.rec.Name = old
		c.mu.Unlock()
		e.unreserve(newName, c.id)
		return err
	}
	e.unreserve(old, c.id)
	c.renameInNetworks(ctx, old, newName)
	c.event(events.ActionRename, map[string]string{"oldName": old})
	return nil
}

// renameInNetworks has a running container found by its new name. What is wrong
// is logged: it is found by it when it starts anew.
func (c *ctr) renameInNetworks(ctx context.Context, old, name string) {
	if c.snapshot().Phase != phaseRunning {
		return
	}
	if err := c.e.cfg.Networks.Rename(ctx, c.id, old, name); err != nil {
		c.e.cfg.Log.Warn("a container's new name is not known in its networks yet", "container", c.id, "error", err)
	}
	if err := c.change(func(r *record) {
		r.Joined = endpointsCopy(r.Joined)
		for _, ep := range r.Joined {
			if i := slices.Index(ep.DNSNames, old); i >= 0 {
				ep.DNSNames[i] = name
			}
		}
	}); err != nil {
		c.e.cfg.Log.Warn("a container's new name could not be written down", "container", c.id, "error", err)
	}
}

// ContainerPrune removes stopped containers. Filters: label, label!, until.
func (e *Engine) ContainerPrune(ctx context.Context, f api.Filters) (*container.PruneReport, error) {
	for k := range f {
		if !slices.Contains([]string{"label", "label!", "until"}, k) {
			return nil, api.Errorf(api.Invalid, "invalid filter '%s'", k)
		}
	}
	until, err := e.parseUntil(f["until"])
	if err != nil {
		return nil, err
	}
	report := &container.PruneReport{ContainersDeleted: []string{}}
	for _, c := range e.all() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r := c.snapshot()
		s := r.status()
		if r.Managed && s == container.StateCreated || s != container.StateExited && s != container.StateCreated && s != container.StateDead ||
			!until.IsZero() && r.Created.After(until) ||
			!hasLabels(r.Config.Labels, f["label"]) || len(f["label!"]) > 0 && hasLabels(r.Config.Labels, f["label!"]) {
			continue
		}
		size, _ := e.cfg.Runtime.Usage(ctx, c.id)
		if err := e.ContainerRemove(ctx, c.id, RemoveOptions{}); err != nil {
			e.cfg.Log.Warn("a container could not be pruned", "container", c.id, "error", err)
			continue
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.id)
		report.SpaceReclaimed += uint64(max(0, size))
	}
	e.Emit(events.ContainerEventType, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(report.SpaceReclaimed, 10)})
	return report, nil
}

// parseUntil reads a time: Unix seconds, a date, or a duration before now.
func (e *Engine) parseUntil(values []string) (time.Time, error) {
	if len(values) == 0 {
		return time.Time{}, nil
	}
	if len(values) > 1 {
		return time.Time{}, api.Errorf(api.Invalid, "more than one until filter specified")
	}
	s := values[0]
	if d, err := time.ParseDuration(s); err == nil {
		return e.cfg.Now().Add(-d), nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		return time.Unix(int64(n), 0), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, api.Errorf(api.Invalid, "invalid filter 'until=%s': want a duration, a date or Unix seconds", s)
}
