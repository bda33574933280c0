package executor

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Config is what an Executor is made from.
type Config struct {
	// Engine runs the containers. Its Restore must have returned. Required.
	Engine *engine.Engine
	// Networks makes the swarm's networks known to what the engine has its
	// containers' networks from. Nil: tasks can't be in any.
	Networks Networks
	// Version is the product's, as nodes show it. Required.
	Version string
	// Labels of the engine as key=value.
	Labels []string
	// GenericResources the node offers.
	GenericResources []swarm.GenericResource
	// Log receives what has no caller to return to. Required.
	Log *slog.Logger
}

// Networks makes networks of the swarm known on this node, by id, and what is to
// be said of the tasks in them.
type Networks interface {
	// Use has the networks known until release is called and no container is in
	// them.
	Use(networks []*api.Network) (release func(), err error)
	// UseFor is Use for a container that is about to join them with the addresses
	// that its task was given.
	UseFor(container string, networks []*api.Network) (release func(), err error)
	// Announce says that a container, which is about to join its networks, is a
	// task; Serve, whether that can be given work.
	Announce(container string, t *api.Task)
	Serve(container string, can bool)
	// Drain takes a task out of all lists on this node, and reports whether it was
	// in one.
	Drain(ctx context.Context, container string) (was bool, err error)
	// Withdrawn returns when all other nodes have done so too with tasks that are to
	// end, or why that is not known. It does not wait for long.
	Withdrawn(ctx context.Context) error
}

// Executor makes controllers for tasks. Safe for concurrent use.
type Executor struct {
	mu  sync.Mutex
	ids map[string]string // of containers, by task
	n   *api.Node

	cfg Config
}

var _ exec.Executor = (*Executor)(nil)

// New returns an executor that knows the tasks' containers which are there.
func New(cfg Config) (*Executor, error) {
	if cfg.Engine == nil || cfg.Log == nil || cfg.Version == "" {
		return nil, api.Errorf(api.Invalid, "executor: Engine, Version and Log are required")
	}
	e := &Executor{ids: make(map[string]string), cfg: cfg}
	for _, task := range cfg.Engine.ManagedTasks(labelTaskID) {
		id, err := cfg.Engine.Managed(labelTaskID, task)
		if err != nil {
			return nil, err
		}
		e.ids[task] = id
	}
	return e, nil
}

// Describe implements exec.Executor.
func (e *Executor) Describe(ctx context.Context) (*swarm.NodeDescription, error) {
	i, err := e.cfg.Engine.Info(ctx)
	if err != nil {
		return nil, err
	}
	d := &swarm.NodeDescription{
		Hostname: i.Hostname,
		Platform: e.cfg.Engine.Platform(),
		Resources: swarm.Resources{
			NanoCPUs: int64(i.CPUs) * 1e9, MemoryBytes: i.Memory, GenericResources: e.cfg.GenericResources,
		},
		Engine: swarm.EngineDescription{EngineVersion: e.cfg.Version, Labels: map[string]string{}},
	}
	for _, l := range e.cfg.Labels {
		k, v, _ := strings.Cut(l, "=")
		d.Engine.Labels[k] = v
	}
	for kind, names := range map[string][]string{"Log": i.LogDrivers, "Network": i.NetworkDrivers, "Volume": i.VolumeDrivers} {
		for _, n := range names {
			d.Engine.Plugins = append(d.Engine.Plugins, swarm.PluginDescription{Type: kind, Name: n})
		}
	}
	slices.SortFunc(d.Engine.Plugins, func(a, b swarm.PluginDescription) int {
		return strings.Compare(a.Type+" "+a.Name, b.Type+" "+b.Name)
	})
	return d, nil
}

// Configure implements exec.Executor.
func (e *Executor) Configure(_ context.Context, n *api.Node) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n = n
	return nil
}

func (e *Executor) node() *api.Node {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
}

// Controller implements exec.Executor.
func (e *Executor) Controller(t *api.Task, deps exec.Dependencies) (exec.Controller, error) {
	if t.ID == "" {
		return nil, api.Errorf(api.Invalid, "executor: the task has no id")
	}
	c := &controller{e: e, engine: e.cfg.Engine, task: t, deps: deps, made: make(chan struct{}), unfit: make(chan struct{})}
	if t.Spec == nil {
		return c, nil
	}
	c.auth = t.Spec.RegistryAuth
	ready, err := api.ParseReadiness(t.Spec.ServiceLabels)
	if err != nil {
		return nil, exec.Rejected(err) // a newer manager knows labels that this node does not
	}
	if c.drainDelay, err = api.ParseDrainDelay(t.Spec.ServiceLabels); err != nil {
		return nil, exec.Rejected(err)
	}
	if ready.Test != "" {
		c.ready = newReadiness(ready, c.probe)
	}
	return c, nil
}

// Adopted implements exec.Executor.
func (e *Executor) Adopted(context.Context) ([]string, error) {
	return e.cfg.Engine.ManagedTasks(labelTaskID), nil
}

// container finds the task's container.
func (e *Executor) container(task string) (string, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id, ok := e.ids[task]
	return id, ok
}

func (e *Executor) remember(task, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id == "" {
		delete(e.ids, task)
		return
	}
	e.ids[task] = id
}

// settled takes the errors away that say that it is so already.
func settled(err error, classes ...api.Class) error {
	if slices.Contains(classes, api.ClassOf(err)) {
		return nil
	}
	return err
}
