package engine

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

// ctr is one container.
type ctr struct {
	mu      sync.Mutex
	rec     record
	run     *run // nil unless a process is there
	waiters []*waiter
	health  *healthState
	// healthChanged is closed at the next change; nil when nobody waits.
	healthChanged chan struct{}
	probes        map[string]*execution
	// restart ends a pending restart; nil when none is pending.
	restart context.CancelFunc
	// failures counts restarts in a row, for the delay before the next.
	failures int
	execs    map[string]*execution
	gone     bool          // removed
	touched  bool          // files were put in its root from outside
	stopping bool          // a stop is under way: no restart
	oom      chan struct{} // told of a kill for memory; nil when nobody waits
	log      *logfile.Log

	e   *Engine
	id  string
	dir string
	ops chan struct{} // has a value while a long operation is under way
	io  *terminals

	saving sync.Mutex // one write of the record at a time, in order
}

func (e *Engine) newContainer(r record) *ctr {
	return &ctr{
		rec: r, e: e, id: r.ID, dir: filepath.Join(e.dir, r.ID),
		ops: make(chan struct{}, 1), io: newTerminals(), execs: make(map[string]*execution),
	}
}

// begin waits for the long operation under way. The caller calls end.
func (c *ctr) begin(ctx context.Context) error {
	select {
	case c.ops <- struct{}{}:
		return nil
	default:
	}
	select {
	case c.ops <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *ctr) end() { <-c.ops }

// snapshot returns the record as it is now.
func (c *ctr) snapshot() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// shown is the record as users see it: a process that has ended does not run,
// though what it had is still being given back.
func (c *ctr) shown() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rec
	if c.run == nil || r.Phase != phaseRunning {
		return r
	}
	select {
	case <-c.run.exited:
		r.Phase, r.Pid, r.Paused = phaseExited, 0, false
		r.ExitCode, r.FinishedAt = c.run.exit.Code, c.run.exit.At.UTC()
	default:
	}
	return r
}

// change applies f to the record and writes it.
func (c *ctr) change(f func(r *record)) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	f(&c.rec)
	r := c.rec
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return nil
	}
	return writeRecord(c.dir, &r)
}

// note is change where an error has nobody to go to.
func (c *ctr) note(f func(r *record)) {
	if err := c.change(f); err != nil {
		c.e.cfg.Log.Error("a container's state could not be written; it is kept in memory", "container", c.id, "error", err)
	}
}

// status is the state as Docker names it.
func (r *record) status() container.ContainerState {
	switch {
	case r.Phase == phaseRunning && r.Paused:
		return container.StatePaused
	case r.Restarting:
		return container.StateRestarting
	case r.Phase == phaseRunning:
		return container.StateRunning
	case r.Phase == phaseRemoving:
		return container.StateRemoving
	case r.Phase == phaseDead:
		return container.StateDead
	case r.Phase == phaseExited || !r.StartedAt.IsZero():
		return container.StateExited
	default:
		return container.StateCreated
	}
}

// running returns the run of a container that runs.
func (c *ctr) running() (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil || c.rec.Phase != phaseRunning {
		return nil, c.notRunning()
	}
	return c.run, nil
}

func (c *ctr) notRunning() error {
	return api.Errorf(api.Conflict, "container %s is not running", c.id)
}

// userNetwork reports whether the mode names a network with names of its own.
func userNetwork(name string) bool { return container.NetworkMode(name).IsUserDefined() }

// endpointsCopy copies what may be filled in.
func endpointsCopy(in map[string]*network.EndpointSettings) map[string]*network.EndpointSettings {
	out := make(map[string]*network.EndpointSettings, len(in))
	for k, v := range in {
		if v == nil {
			v = &network.EndpointSettings{}
		}
		out[k] = v.Copy()
	}
	return out
}

// run is one life of a container's process.
type run struct {
	pid     int
	started time.Time
	streams *Streams

	exited  chan struct{} // closed by processEnded
	exit    Exit
	once    sync.Once
	drained chan struct{} // closed when all output is in the log
	ended   chan struct{} // closed when the container's state says that it ended
	cleanup []func()      // undoes mounts; called once, after the end
	pumps   sync.WaitGroup
}

func newRun() *run {
	return &run{exited: make(chan struct{}), drained: make(chan struct{}), ended: make(chan struct{})}
}

// release closes our ends of the streams: the process runs on.
func (r *run) release() {
	if r.streams == nil {
		return
	}
	if r.streams.Stdout != nil {
		_ = r.streams.Stdout.Close()
	}
	if r.streams.Stderr != nil {
		_ = r.streams.Stderr.Close()
	}
}

func (r *run) undo() {
	for i := len(r.cleanup) - 1; i >= 0; i-- {
		r.cleanup[i]()
	}
	r.cleanup = nil
}
