package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

func mapsKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

// ContainerStart starts a container. NotModified when it runs already.
func (e *Engine) ContainerStart(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	c.cancelRestart()
	return c.start(ctx, e.checkLinks)
}

// startable says why a container can't be started.
func (c *ctr) startable() error {
	r := c.snapshot()
	switch {
	case r.Phase == phaseRunning && r.Paused:
		return api.Errorf(api.Conflict, "cannot start a paused container, try unpause instead")
	case r.Phase == phaseRunning:
		return api.Errorf(api.NotModified, "container %s is already running", c.id)
	case r.Phase == phaseRemoving || r.Phase == phaseDead:
		return api.Errorf(api.Conflict, "container is marked for removal and cannot be started")
	}
	return nil
}

// start starts the container; the caller is in a long operation. If check is given and
// fails, the start has failed.
func (c *ctr) start(ctx context.Context, check func(*record) error) (err error) {
	if err := c.startable(); err != nil {
		return err
	}
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return api.Errorf(api.NotFound, "No such container: %s", c.id)
	}
	if err := c.change(func(r *record) { r.Phase, r.Restarting = phaseStarting, false }); err != nil {
		return err
	}
	run := newRun()
	defer func() {
		if err != nil {
			c.startFailed(context.WithoutCancel(ctx), run, err)
		}
	}()
	rec := c.snapshot()
	if check != nil {
		if err := check(&rec); err != nil {
			return err
		}
	}
	env, err := c.ready(ctx, run)
	if err != nil {
		return err
	}
	rec = c.snapshot()
	spec, err := c.specOf(ctx, &rec, env)
	if err != nil {
		return err
	}
	log, err := c.openLog()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.run = run // so that its end is noticed however early it comes
	c.mu.Unlock()
	run.streams, err = c.e.cfg.Runtime.Create(ctx, RuntimeContainer{
		ID: c.id, Image: rec.ImageID, Platform: rec.Platform, Spec: spec, Stdin: rec.Config.OpenStdin, ReuseRootfs: true,
	})
	if err != nil {
		return err
	}
	c.startPumps(run, log)
	pid, err := c.e.cfg.Runtime.Start(ctx, c.id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	run.pid = pid
	c.mu.Unlock()
	run.started = c.e.cfg.Now().UTC()
	c.note(func(r *record) {
		r.Phase, r.Pid, r.StartedAt, r.Stopped = phaseRunning, pid, run.started, false
		r.ExitCode, r.Error, r.OOMKilled, r.Unhealthy, r.Paused = 0, "", false, false, false
	})
	c.event(events.ActionStart, nil)
	c.startHealth(run)
	c.e.spawn(func(ctx context.Context) { c.watch(ctx, run) })
	return nil
}

// startFailed puts things back as they were.
func (c *ctr) startFailed(ctx context.Context, run *run, cause error) {
	c.mu.Lock()
	c.run = nil
	c.mu.Unlock()
	if err := c.e.cfg.Runtime.Delete(ctx, c.id); err != nil {
		c.e.cfg.Log.Error("what is left of a failed start could not be removed", "container", c.id, "error", err)
	}
	run.release()
	c.io.close()
	c.closeLog()
	if err := c.e.cfg.Networks.Leave(ctx, c.id); err != nil {
		c.e.cfg.Log.Error("the network of a failed start could not be removed", "container", c.id, "error", err)
	}
	run.undo()
	code := 128
	for _, s := range []string{"executable file not found", "no such file or directory"} {
		if strings.Contains(cause.Error(), s) {
			code = 127
		}
	}
	for _, s := range []string{"permission denied", "is a directory", "not a directory", "exec format error"} {
		if strings.Contains(cause.Error(), s) {
			code = 126
		}
	}
	c.note(func(r *record) {
		r.Phase = phaseCreated
		if !r.StartedAt.IsZero() {
			r.Phase = phaseExited
		}
		r.Pid, r.ExitCode, r.Error, r.Sandbox, r.Ports, r.Joined = 0, code, cause.Error(), "", nil, nil
	})
	c.mu.Lock()
	ws := c.takeWaiters(false)
	c.mu.Unlock()
	answer(ws, code, cause.Error())
	c.autoRemove()
}

// ready makes all that a run needs besides the process: network, mounts, files.
func (c *ctr) ready(ctx context.Context, run *run) (*environment, error) {
	rec := c.snapshot()
	env := &environment{sources: make(map[string]string, len(rec.Mounts))}
	if err := c.readyMounts(ctx, run, &rec, env); err != nil {
		return nil, err
	}
	if rec.Host.IpcMode.IsShareable() {
		path, undo, err := c.e.sharedMemory(c.id, rec.Host.ShmSize)
		if err != nil {
			return nil, err
		}
		env.shm = path
		run.cleanup = append(run.cleanup, undo)
	} else if rec.Host.IpcMode.IsHost() {
		env.shm = "/dev/shm"
	} else if other := rec.Host.IpcMode.Container(); other != "" {
		o, err := c.e.find(other)
		if err != nil {
			return nil, err
		}
		if or := o.snapshot(); !or.Host.IpcMode.IsShareable() {
			return nil, api.Errorf(api.Invalid, "cannot join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other)
		}
		env.shm = filepath.Join(c.e.cfg.ExecRoot, "shm", o.id)
	}
	for _, f := range rec.Files {
		source := filepath.Join(c.e.filesDir(c.id), f.Source)
		if _, err := os.Stat(source); err != nil {
			return nil, api.Errorf(api.Conflict, "container %s: its file %s was in memory only, and is gone since the task ended or the host was restarted; make the container anew", c.id, f.Path)
		}
		env.files = append(env.files, specs.Mount{Destination: f.Path, Type: "bind", Source: source, Options: []string{"bind", "ro", "rprivate"}})
	}
	return env, c.join(ctx, &rec, env)
}

// join gives the container its network.
func (c *ctr) join(ctx context.Context, rec *record, env *environment) error {
	if rec.Host.NetworkMode.IsContainer() {
		other := rec.Host.NetworkMode.ConnectedContainer()
		path, err := c.e.namespaceOf(other, "net")
		if err != nil {
			return err
		}
		o, err := c.e.find(other)
		if err != nil {
			return err
		}
		env.netns, env.etc = path, c.otherEtc(o.id)
		return nil
	}
	eps := endpointsCopy(rec.Endpoints)
	for name, ep := range eps {
		ep.DNSNames = dnsNames(rec, name, ep)
		last := rec.Seen[rec.seenAs(name)] // nothing, at its first start
		ep.IPAddress, ep.GlobalIPv6Address = last.IPv4, last.IPv6
	}
	c.e.cfg.Networks.SetDNS(c.id, rec.Host.DNS)
	box, err := c.e.cfg.Networks.Join(ctx, c.id, eps, wantedPorts(rec))
	if err != nil {
		return err
	}
	env.netns = box.Path
	if env.etc, err = c.writeEtc(rec, box); err != nil {
		return err
	}
	if err := c.change(func(r *record) {
		r.Joined, r.Ports, r.Sandbox = box.Endpoints, box.Ports, box.Path
		r.see(c.e.cfg.Networks.Known)
	}); err != nil {
		return err
	}
	if box.Endpoints[network.NetworkBridge] != nil {
		c.tellLinked()
	}
	now := c.snapshot()
	for name := range box.Endpoints {
		c.networkEvent(events.ActionConnect, name, now.seen(name))
	}
	return nil
}

func (c *ctr) networkEvent(action events.Action, name string, n seenNetwork) {
	if known, ok := c.e.cfg.Networks.Known(name); ok && n.Driver == "" {
		n = seenNetwork{ID: known.ID, Driver: known.Driver}
	}
	c.e.Emit(events.NetworkEventType, action, n.ID, map[string]string{"container": c.id, "name": name, "type": n.Driver})
}

// dnsNames are the names of a container in a network of its own names.
func dnsNames(r *record, net string, ep *network.EndpointSettings) []string {
	if !userNetwork(net) {
		return nil
	}
	names := []string{r.Name}
	for _, n := range append(append([]string{}, ep.Aliases...), r.ID[:12], r.Config.Hostname) {
		known := n == ""
		for _, k := range names {
			known = known || k == n
		}
		if !known {
			names = append(names, n)
		}
	}
	return names
}

// wantedPorts are the ports to publish; with -P all that are exposed.
func wantedPorts(r *record) network.PortMap {
	ports := maps.Clone(r.Host.PortBindings)
	if r.Host.NetworkMode.IsHost() || r.Host.NetworkMode.IsNone() {
		return nil
	}
	if ports == nil {
		ports = network.PortMap{}
	}
	if r.Host.PublishAllPorts {
		for p := range r.Config.ExposedPorts {
			if _, ok := ports[p]; !ok {
				ports[p] = []network.PortBinding{{}}
			}
		}
	}
	return ports
}

// readyMounts finds or makes the source of each mount.
func (c *ctr) readyMounts(ctx context.Context, run *run, rec *record, env *environment) error {
	for i := range rec.Mounts {
		m := &rec.Mounts[i]
		var source string
		var err error
		switch m.Type {
		case mount.TypeVolume:
			source, err = c.readyVolume(ctx, run, m)
		case mount.TypeBind:
			source = m.Source
			if m.CreateMissing {
				if err = os.MkdirAll(source, 0o755); err != nil {
					err = api.Errorf(api.Invalid, "error while creating mount source path '%s': %w", source, err)
				}
			} else {
				err = m.checkSource()
			}
		case mount.TypeImage:
			source, err = c.readyImage(ctx, run, m, i)
		case mount.TypeTmpfs, mount.TypeNamedPipe, mount.TypeCluster:
			continue
		}
		if err != nil {
			return err
		}
		env.sources[m.Destination] = source
	}
	return nil
}

func (c *ctr) readyVolume(ctx context.Context, run *run, m *mountPoint) (string, error) {
	e := c.e
	path, err := e.volumes.mount(ctx, m.Name, c.id)
	if err != nil {
		return "", err
	}
	e.volumeEvent(events.ActionMount, m.Name, map[string]string{"container": c.id, "destination": m.Destination, "read/write": strconv.FormatBool(m.RW), "propagation": string(m.Propagation)})
	run.cleanup = append(run.cleanup, func() {
		e.volumes.unmount(m.Name, c.id, e.cfg.Log)
		e.volumeEvent(events.ActionUnmount, m.Name, map[string]string{"container": c.id})
	})
	if o := m.Spec.VolumeOptions; o != nil && o.Subpath != "" {
		return subpath(path, o.Subpath)
	}
	return path, nil
}

// subpath finds a folder within a mount, wherever links in it lead.
func subpath(root, sub string) (string, error) {
	path, err := resolveIn(root, sub)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", api.Errorf(api.Invalid, "cannot access path %s: %w", sub, err)
	}
	return path, nil
}

// readyImage makes an image's files visible for the run.
func (c *ctr) readyImage(ctx context.Context, run *run, m *mountPoint, n int) (string, error) {
	e := c.e
	img, err := e.cfg.Images.Resolve(ctx, m.Source)
	if err != nil {
		return "", err
	}
	id := c.id + "-m" + strconv.Itoa(n)
	if err := e.cfg.Runtime.MakeRootfs(ctx, id, img.ID, img.Platform, 0); err != nil {
		return "", err
	}
	drop := func() {
		if err := e.cfg.Runtime.RemoveRootfs(context.WithoutCancel(ctx), id); err != nil {
			e.cfg.Log.Warn("an image mount could not be removed", "container", c.id, "error", err)
		}
	}
	path, release, err := e.cfg.Runtime.Mount(ctx, id)
	if err != nil {
		drop()
		return "", err
	}
	run.cleanup = append(run.cleanup, func() {
		if err := release(); err != nil {
			e.cfg.Log.Warn("an image mount could not be undone", "container", c.id, "error", err)
		}
		drop()
	})
	if o := m.Spec.ImageOptions; o != nil && o.Subpath != "" {
		return subpath(path, o.Subpath)
	}
	return path, nil
}

// namespaceOf is the path of another, running container's namespace.
func (e *Engine) namespaceOf(name, kind string) (string, error) {
	o, err := e.find(name)
	if err != nil {
		return "", err
	}
	r := o.snapshot()
	if r.Phase != phaseRunning {
		return "", api.Errorf(api.Conflict, "cannot join the %s namespace of a non running container: %s", kind, o.id)
	}
	if r.Restarting {
		return "", api.Errorf(api.Conflict, "Container %s is restarting, wait until the container is running", o.id)
	}
	return filepath.Join("/proc", strconv.Itoa(r.Pid), "ns", kind), nil
}

// openLog makes the container's log ready for its output.
func (c *ctr) openLog() (*logfile.Log, error) {
	l, err := c.logOf()
	if err != nil {
		return nil, err
	}
	if err := l.Open(); err != nil {
		return nil, fmt.Errorf("failed to initialize logging driver: %w", err)
	}
	return l, nil
}

func (c *ctr) closeLog() {
	c.mu.Lock()
	l := c.log
	c.mu.Unlock()
	if l != nil {
		if err := l.Close(); err != nil {
			c.e.cfg.Log.Error("a container's log could not be closed", "container", c.id, "error", err)
		}
	}
}

var errStopping = errors.New("engine: it is being stopped")
