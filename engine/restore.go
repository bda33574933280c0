package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moby/moby/api/types/mount"
)

// restoreWorkers is how many containers are adopted at a time.
const restoreWorkers = 16

// Restore reads what an earlier daemon left: it adopts what runs, records what
// ended meanwhile, and removes what was half-made and what nobody knows. It is
// called once, before Run and all other methods. What can't be removed now is
// logged, and left for the next start.
func (e *Engine) Restore(ctx context.Context) error {
	states, err := e.cfg.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("engine: what containers run: %w", err)
	}
	known := make(map[string]RuntimeState, len(states))
	for _, s := range states {
		known[s.ID] = s
	}
	if err := e.readRecords(ctx); err != nil {
		return err
	}
	for id := range known {
		if e.containers[id] == nil {
			e.purge(ctx, id)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(restoreWorkers)
	for _, c := range e.containers {
		g.Go(func() error { return c.restore(gctx, known) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var alive []string
	for id, c := range e.containers {
		if c.run != nil {
			alive = append(alive, id)
		}
	}
	if err := e.cfg.Networks.Keep(ctx, alive); err != nil {
		e.cfg.Log.Error("networks could not be put in order; the node goes on trying", "error", err)
	}
	e.sweep()
	e.resume()
	return nil
}

// readRecords fills the tables. Containers without a record, or cut off while
// they were made or removed, are removed.
func (e *Engine) readRecords(ctx context.Context) error {
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	for _, entry := range entries {
		id := entry.Name()
		dir := filepath.Join(e.dir, id)
		r, err := readRecord(dir, id)
		switch {
		case errors.Is(err, errNoRecord):
			e.cfg.Log.Warn("a container that was not made to the end is removed", "container", id, "reason", err)
			e.purge(ctx, id)
			continue
		case err != nil:
			return fmt.Errorf("engine: container %s: %w", id, err)
		case r.Phase == phaseMaking || r.Phase == phaseRemoving || r.Phase == phaseDead:
			e.purge(ctx, id)
			continue
		}
		if other, taken := e.names[r.Name]; taken {
			e.cfg.Log.Warn("two containers have one name; the second is renamed", "name", r.Name, "containers", []string{other, id})
			r.Name += "_" + shortID(id)
		}
		c := e.newContainer(*r)
		e.containers[id], e.names[r.Name] = c, id
		for i := range r.Mounts {
			if m := &r.Mounts[i]; m.Type == mount.TypeVolume {
				if err := e.volumes.use(m.Name, id); err != nil {
					e.cfg.Log.Warn("a container's volume is gone", "container", id, "volume", m.Name)
				}
			}
		}
	}
	return nil
}

// purge removes all of a container that there must not be.
func (e *Engine) purge(ctx context.Context, id string) {
	err := errors.Join(e.cfg.Runtime.Delete(ctx, id), e.cfg.Runtime.RemoveRootfs(ctx, id), e.removeFiles(id))
	if err == nil {
		err = os.RemoveAll(filepath.Join(e.dir, id))
	}
	if err != nil {
		e.cfg.Log.Error("what is left of a container could not be removed", "container", id, "error", err)
	}
}

// restore brings one container's record and its process together.
func (c *ctr) restore(ctx context.Context, known map[string]RuntimeState) error {
	st, there := known[c.id]
	r := c.rec
	switch {
	case there && st.Running:
		return c.adopt(ctx, st)
	case !there && r.Phase != phaseRunning && r.Phase != phaseStarting:
		return nil
	case there && st.Created:
		c.e.dropProcess(ctx, c.id)
		return c.change(func(r *record) { r.Phase, r.Pid, r.Joined, r.Ports, r.Sandbox = c.idlePhase(), 0, nil, nil, "" })
	}
	x := Exit{ID: c.id, Code: rebootedCode, At: c.e.cfg.Now()}
	if there {
		x.Code = st.Code
		if !st.At.IsZero() {
			x.At = st.At
		}
		c.collect(ctx)
		c.e.dropProcess(ctx, c.id)
	}
	if r.Phase == phaseStarting && !there { // it never ran, or is gone without a trace
		return c.change(func(r *record) { r.Phase, r.Pid, r.Joined, r.Ports, r.Sandbox = c.idlePhase(), 0, nil, nil, "" })
	}
	if r.Phase == phaseExited || r.Phase == phaseCreated { // told before; only tidying was left
		return nil
	}
	return c.change(func(r *record) {
		r.Phase, r.Pid, r.Paused, r.ExitCode, r.FinishedAt = phaseExited, 0, false, x.Code, x.At.UTC()
		r.Joined, r.Ports, r.Sandbox = nil, nil, ""
		if r.StartedAt.IsZero() {
			r.StartedAt = r.FinishedAt
		}
	})
}

func (c *ctr) idlePhase() phase {
	if c.rec.StartedAt.IsZero() {
		return phaseCreated
	}
	return phaseExited
}

func (e *Engine) dropProcess(ctx context.Context, id string) {
	if err := e.cfg.Runtime.Delete(ctx, id); err != nil {
		e.cfg.Log.Error("what is left of a container could not be removed", "container", id, "error", err)
	}
}

// collect takes the last output of a process that is gone.
func (c *ctr) collect(ctx context.Context) {
	streams, err := c.e.cfg.Runtime.Attach(ctx, c.id)
	if err != nil {
		return
	}
	log, err := c.openLog()
	if err != nil {
		c.e.cfg.Log.Error("a container's log could not be opened", "container", c.id, "error", err)
		closeStreams(streams)
		return
	}
	r := newRun()
	r.streams = streams
	c.startPumps(r, log)
	t := time.NewTimer(drainPatience)
	defer t.Stop()
	select {
	case <-r.drained:
	case <-t.C:
		r.release()
		<-r.drained
	}
	c.io.close()
	closeStreams(streams)
	c.closeLog()
}

// adopt takes over a running process.
func (c *ctr) adopt(ctx context.Context, st RuntimeState) error {
	streams, err := c.e.cfg.Runtime.Attach(ctx, c.id)
	if err != nil {
		return fmt.Errorf("engine: container %s runs, but its output can't be read: %w", c.id, err)
	}
	log, err := c.openLog()
	if err != nil {
		return fmt.Errorf("engine: container %s: %w", c.id, err)
	}
	r := newRun()
	r.pid, r.streams, r.started = st.Pid, streams, c.rec.StartedAt
	if r.started.IsZero() {
		r.started = c.e.cfg.Now().UTC()
	}
	c.readopt(r)
	c.run = r
	c.note(func(rec *record) {
		rec.Phase, rec.Pid, rec.Paused, rec.StartedAt, rec.Restarting = phaseRunning, st.Pid, st.Paused, r.started, false
	})
	c.startPumps(r, log)
	return nil
}

// readopt notes what the run uses, to be given back at its end.
func (c *ctr) readopt(r *run) {
	e := c.e
	for i := range c.rec.Mounts {
		m := c.rec.Mounts[i]
		switch m.Type {
		case mount.TypeVolume:
			if v, err := e.volumes.get(m.Name); err == nil {
				e.volumes.mu.Lock()
				v.mounted[c.id] = struct{}{}
				e.volumes.mu.Unlock()
			}
			r.cleanup = append(r.cleanup, func() { e.volumes.unmount(m.Name, c.id, e.cfg.Log) })
		case mount.TypeImage:
			id := fmt.Sprintf("%s-m%d", c.id, i)
			r.cleanup = append(r.cleanup, func() {
				if err := e.cfg.Runtime.RemoveRootfs(context.Background(), id); err != nil {
					e.cfg.Log.Warn("an image mount could not be removed", "container", c.id, "error", err)
				}
			})
		case mount.TypeBind, mount.TypeTmpfs, mount.TypeNamedPipe, mount.TypeCluster:
		}
	}
	if c.rec.Host.IpcMode.IsShareable() {
		path := filepath.Join(e.cfg.ExecRoot, "shm", c.id)
		r.cleanup = append(r.cleanup, func() { dropShared(path) })
	}
}

// sweep removes files and mounts of containers that are gone.
func (e *Engine) sweep() {
	for _, kind := range []string{"files", "shm"} {
		dir := filepath.Join(e.cfg.ExecRoot, kind)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			c := e.containers[entry.Name()]
			path := filepath.Join(dir, entry.Name())
			switch {
			case kind == "files" && c == nil:
				_ = os.RemoveAll(path)
			case kind == "shm" && (c == nil || c.run == nil):
				dropShared(path)
			}
		}
		if kind == "files" && len(entries) > 0 {
			e.dropMemory(dir)
		}
	}
	for _, v := range e.volumes.all {
		if len(v.Options) > 0 && len(v.mounted) == 0 {
			e.volumes.unmountStale(v, e.cfg.Log)
		}
	}
}

// resume begins the background work of what was adopted, and restarts what its
// policy wants running.
func (e *Engine) resume() {
	for _, c := range e.containers {
		if r := c.run; r != nil {
			c.startHealth(r)
			e.spawn(func(ctx context.Context) { c.watch(ctx, r) })
			continue
		}
		p := &c.rec.Host.RestartPolicy
		ran := c.rec.Phase == phaseExited
		if c.rec.Managed || !ran {
			continue
		}
		if p.IsAlways() || p.IsUnlessStopped() && !c.rec.Stopped || p.IsOnFailure() && c.rec.ExitCode != 0 && !c.rec.Stopped || c.rec.Restarting {
			c.note(func(r *record) { r.Restarting = true })
			c.restartLater(e.life)
		} else {
			c.autoRemove()
		}
	}
}
